"""What a run asks: its recipe's prompts about its images, kept in prompts.jsonl, and which of them are held out."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlx_visalign.data.image_folder import Photo, content_id, find_photos, held_out, near_identical, require_unchanged
from mlx_visalign.data.images import check_image
from mlx_visalign.data.object_vocabulary import Vocabulary, coco80, read_vocabulary
from mlx_visalign.data.questions import DESCRIPTION_PROMPTS, Mix, make_prompts, read_prompts
from mlx_visalign.data.records import Prompt
from mlx_visalign.runs.recipe import TINY_WORLD, Recipe
from mlx_visalign.runs.run import Run
from mlx_visalign.runs.stage import Row, Stage, fingerprint
from mlx_visalign.tiny_world.source import world_mix, world_photos, world_scenes
from mlx_visalign.utils.console import say
from mlx_visalign.utils.files import read_text
from mlx_visalign.utils.formatting import counted
from mlx_visalign.utils.links import leads_out


@dataclass(frozen=True)
class Asked(Prompt):
    """A prompt of a run: whether it is kept out of the training, and what tells its image from what it may become."""

    held_out: bool = field(kw_only=True)
    content: str = ""  # runs of earlier versions did not write it down

    @property
    def as_prompt(self) -> Prompt:
        return Prompt(self.id, self.image, self.prompt, self.kind)


def ask(recipe: Recipe, run: Run, draw: bool = True) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to train on, and those about the tenth of the images that is held out. Both stand in prompts.jsonl.

    `draw`: put the tiny world's scenes, if it is about them, into the run's folder.
    """
    if draw and recipe.images == TINY_WORLD:
        world_photos(
            run.folder, *_scenes(recipe)
        )  # whatever the stage does: another run's prompts are reused without their images
    made_before = run.reuse is not None or run.prompts.exists()
    asked = run.records(
        Asked,
        "prompts",
        ["all prompts"],
        lambda _: _prompt_rows(recipe),
        settings=_what_prompts_depend_on(recipe),
        batch=1,
        title="prompts",
    )
    if made_before and recipe.images != TINY_WORLD:
        require_unchanged({one.image: one.content for one in asked if one.content})
    trained, kept = ([one.as_prompt for one in asked if one.held_out is side] for side in (False, True))
    return trained, kept


def images_of_run(folder: Path) -> str | None:
    """The user's folder of images that the run in `folder` is about; None where there is no such run, or none is known."""
    stage = Stage(folder, "prompts")
    known = stage.settings_file.exists() and not leads_out(stage.settings_file, folder)
    images = stage.settings().get("images") if known else None
    if images in (None, TINY_WORLD):
        return None
    places = [images] if isinstance(images, str) else images
    return os.path.commonpath([os.path.dirname(place) if _is_file(place) else place for place in places])


def _is_file(place: str) -> bool:
    """Or a pattern for files."""
    return os.path.isfile(place) or (glob.has_magic(place) and not os.path.exists(place))


def _what_prompts_depend_on(recipe: Recipe) -> Row:
    return {
        "images": _absolute(recipe.images),
        "count": recipe.count,
        "questions": recipe.questions,
        "prompts": _content(recipe.prompts),
        "vocabulary": _content(recipe.vocabulary),
        "seed": recipe.seed,
    }


def _absolute(images: str | tuple[str, ...] | None) -> str | list[str] | None:
    if isinstance(images, tuple):
        return [os.path.abspath(image) for image in images]
    return images if images in (None, TINY_WORLD) else os.path.abspath(images)


def _content(file: str | None) -> str | None:
    return None if file is None else fingerprint([read_text(Path(file))])


def _prompt_rows(recipe: Recipe) -> list[Row]:
    if recipe.prompts is not None:
        images = None if recipe.images is None else Path(str(recipe.images))
        prompts = read_prompts(Path(recipe.prompts), images, recipe.skip_bad)
        names = dict.fromkeys(prompt.image for prompt in prompts)
        photos = [Photo(content_id(Path(name)), name, check_image(name)) for name in names]
    else:
        photos, mix = _photos_and_mix(recipe)
        prompts = make_prompts(photos, mix, recipe.seed)
    contents = {photo.image: photo.id for photo in photos}
    kept = _held_out(photos)
    return [
        prompt.to_row() | {"held_out": contents[prompt.image] in kept, "content": contents[prompt.image]} for prompt in prompts
    ]


def _held_out(photos: Sequence[Photo]) -> set[str]:
    """The ids of the photos that are held out: no photo that is trained on has the same content, or looks the same."""
    groups = near_identical(photos)
    kept = held_out((photo.id for photo in photos), groups)
    if groups and kept:
        near = sum(map(len, groups))
        say(
            f"{near:,} near-identical photos kept on one side ({counted(len(groups), 'group')}: bursts, or copies in another "
            "size or quality): a group is trained on or held out as a whole."
        )
    return kept


def _photos_and_mix(recipe: Recipe) -> tuple[list[Photo], Mix]:
    if recipe.images == TINY_WORLD:
        return world_scenes(*_scenes(recipe)), world_mix(recipe.questions)
    mix = Mix(DESCRIPTION_PROMPTS, find_vocabulary(recipe.vocabulary), recipe.questions)
    return find_photos(recipe.images or (), recipe.count, recipe.skip_bad), mix


def vocabulary_of(recipe: Recipe) -> Vocabulary:
    """The objects that answers may name."""
    return world_mix(0).vocabulary if recipe.images == TINY_WORLD else find_vocabulary(recipe.vocabulary)


def find_vocabulary(file: str | None) -> Vocabulary:
    """COCO's 80 objects, and those in the file."""
    return coco80() if file is None else coco80().extended(read_vocabulary(Path(file)))


def _scenes(recipe: Recipe) -> tuple[str, int, int]:
    """Which scenes of the tiny world, others for every seed: the split, how many and from which on."""
    count = recipe.count or 0  # a recipe for the tiny world says how many
    return "unlabelled", count, recipe.seed * count
