"""The prompts stage: a run's prompts, kept in prompts.jsonl.

It also decides which images are held out.
"""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlx_visalign.data.image_folder import Photo, held_out, near_identical
from mlx_visalign.data.records import Prompt
from mlx_visalign.runs.image_sources import ImageSource, source_of
from mlx_visalign.runs.recipe import Recipe
from mlx_visalign.runs.run import Run
from mlx_visalign.runs.stage import Row, Stage, fingerprint
from mlx_visalign.runs.worlds import find_world
from mlx_visalign.utils.console import say
from mlx_visalign.utils.files import read_text
from mlx_visalign.utils.formatting import counted
from mlx_visalign.utils.links import leads_out


@dataclass(frozen=True)
class RunPrompt(Prompt):
    """A prompt of a run, as saved.

    held_out  whether its image is held out
    content   the image's content id when the stage ran
    """

    held_out: bool = field(kw_only=True)
    content: str = ""  # missing in runs of earlier versions

    @property
    def as_prompt(self) -> Prompt:
        return Prompt(self.id, self.image, self.prompt, self.kind)


def ask(recipe: Recipe, run: Run, draw: bool = True) -> tuple[list[Prompt], list[Prompt]]:
    """The training prompts, and those about held-out images.

    A tenth of the images is held out. Both kinds are in prompts.jsonl. `draw`: write drawn images into the run's folder.
    """
    source = source_of(recipe)
    if draw:
        source.draw(run.folder)  # even if the stage is reused: another run's prompts come without their images
    made_before = run.reuse is not None or run.prompts.exists()
    prompts = run.records(
        RunPrompt,
        "prompts",
        ["all prompts"],
        lambda _: _prompt_rows(source),
        settings=_depends_on(recipe, source),
        batch=1,
        title="prompts",
    )
    if made_before:
        source.require_unchanged({prompt.image: prompt.content for prompt in prompts if prompt.content})
    trained, kept = ([prompt.as_prompt for prompt in prompts if prompt.held_out is side] for side in (False, True))
    return trained, kept


def images_of_run(folder: Path) -> str | None:
    """The image folder of the run in `folder`, or None.

    None if there is no run, if its images are a world's, or if it did not save a folder.
    """
    stage = Stage(folder, "prompts")
    known = stage.settings_file.exists() and not leads_out(stage.settings_file, folder)
    images = stage.settings().get("images") if known else None
    if images is None or find_world(images) is not None:
        return None
    places = [images] if isinstance(images, str) else images
    return os.path.commonpath([os.path.dirname(place) if _is_file(place) else place for place in places])


def _is_file(place: str) -> bool:
    """Whether `place` is a file, or a pattern for files."""
    return os.path.isfile(place) or (glob.has_magic(place) and not os.path.exists(place))


def _depends_on(recipe: Recipe, source: ImageSource) -> Row:
    """The stage's settings."""
    return {
        "images": source.place,
        "max_images": recipe.max_images,
        "questions_per_image": recipe.questions_per_image,
        "prompts": _content(recipe.prompts),
        "vocabulary": _content(recipe.vocabulary),
        "seed": recipe.seed,
    }


def _content(file: str | None) -> str | None:
    return None if file is None else fingerprint([read_text(Path(file))])


def _prompt_rows(source: ImageSource) -> list[Row]:
    photos, prompts = source.read()
    contents = {photo.image: photo.id for photo in photos}
    kept = _held_out(photos)
    return [
        prompt.to_row() | {"held_out": contents[prompt.image] in kept, "content": contents[prompt.image]} for prompt in prompts
    ]


def _held_out(photos: Sequence[Photo]) -> set[str]:
    """The ids of the held-out photos; no training photo has the same content as one of them, or looks the same."""
    groups = near_identical(photos)
    kept = held_out((photo.id for photo in photos), groups)
    if groups and kept:
        near = sum(map(len, groups))
        say(
            f"{near:,} near-identical photos in {counted(len(groups), 'group')} (bursts, or copies in another size or "
            "quality): each group is either trained on or held out."
        )
    return kept
