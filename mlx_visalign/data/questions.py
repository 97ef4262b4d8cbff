"""Prompts for unlabelled images.

For each image one request for a description, and some existence questions ("Is there a ...?"). Their objects are drawn at
random from a vocabulary, so most of them are absent from the image.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_visalign.data.image_folder import Photo
from mlx_visalign.data.images import image_finder
from mlx_visalign.data.object_vocabulary import Vocabulary, question
from mlx_visalign.data.prompt_template import IMAGE
from mlx_visalign.data.records import Prompt
from mlx_visalign.data.row_formats import read_data
from mlx_visalign.data.template_marks import IMAGE_MARK, TakenOff
from mlx_visalign.utils.console import sift
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.seeding import number_for

DESCRIPTION_PROMPTS = (
    "Give a thorough account of this picture.",
    "What is taking place here?",
    "List and describe the main things you can see.",
    "Describe this photo.",
    "Summarise what the image shows.",
    "Explain the scene in detail.",
    "Which elements stand out in this picture?",
    "Tell me what this photo is about.",
    "Study the image and report everything relevant.",
    "Describe the setting, the objects and what they are doing.",
)
KINDS = ("describe", "exists", "")


@dataclass(frozen=True)
class Mix:
    """Prompts per image.

    One of `descriptions`, and existence questions about `questions` random objects.
    """

    descriptions: tuple[str, ...]
    vocabulary: Vocabulary
    questions: int = 2


def make_prompts(photos: Sequence[Photo], mix: Mix, seed: int) -> list[Prompt]:
    """Prompts for the images, descriptions first.

    The order makes batches of one kind. The prompts of an image depend only on the seed and the image.
    """
    return _by_kind([prompt for photo in photos for prompt in _about(photo, mix, seed)])


def read_prompts(path: Path, images: Path | None = None, skip_bad: bool = False) -> list[Prompt]:
    """Prompts in a user's file, descriptions first.

    Image paths are relative to the folder `images` (default: the file's own folder), must not lead out of it, and are
    returned as absolute paths. Chat template markers around prompts are removed, with a message. Raises UserError with file
    and line for a bad image or a duplicate id (random draws are keyed by ids); with `skip_bad` such rows are skipped, with
    a message.
    """
    find = image_finder(images or path.parent)
    places: dict[str, str] = {}
    taken_off = TakenOff()

    def read(row: tuple[str, Any]) -> Prompt:
        where, value = row
        if isinstance(value, UserError):
            raise value
        prompt = Prompt.from_row(value, where)
        if len(IMAGE_MARK.findall(prompt.prompt)) > 1:
            raise UserError(f"{where}: prompt has more than one image placeholder ({IMAGE}); a prompt is about one image.")
        if places.setdefault(prompt.id, where) != where:
            raise UserError(f"{where}: the id {prompt.id!r} is also used at {places[prompt.id]}; give every prompt its own.")
        question = IMAGE_MARK.sub("", taken_off.question(prompt.prompt, f"{where}: prompt")).strip()
        return replace(prompt, prompt=question, image=str(find(prompt.image, where)))

    prompts = sift(read_data(path), read, skip_bad, "prompts")
    taken_off.report()
    if not prompts:
        raise UserError(f"{path} contains no prompts.")
    return _by_kind(prompts)


def _about(photo: Photo, mix: Mix, seed: int) -> list[Prompt]:
    description = random.Random(number_for(seed, photo.id, "description")).choice(mix.descriptions)
    objects = mix.vocabulary.sample(mix.questions, number_for(seed, photo.id, "objects"))
    exists = [Prompt(f"{photo.id}-exists-{n}", photo.image, question(name), "exists") for n, name in enumerate(objects, 1)]
    return [Prompt(f"{photo.id}-describe", photo.image, description, "describe"), *exists]


def _by_kind(prompts: list[Prompt]) -> list[Prompt]:
    return sorted(prompts, key=lambda prompt: KINDS.index(prompt.kind))


def descriptions(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts other than existence questions."""
    return [prompt for prompt in prompts if prompt.kind != "exists"]


def one_an_image(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The first prompt about every image, in order."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.image, prompt)
    return list(first.values())


def spread_descriptions(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """At most `count` descriptions, spread evenly over all of them.

    Neighbours in a folder of photos often show the same.
    """
    all_of_them = descriptions(prompts)
    return all_of_them[:: max(1, len(all_of_them) // count)][:count]
