"""A recipe: which model is aligned, on which images, by which method and with which settings.

It is a YAML file (see `config`) with the fields of `Recipe` and, under `settings`, those of the method's `Settings`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mlx_visalign.config import load_recipe
from mlx_visalign.errors import UserError, collect, refuse
from mlx_visalign.fields import build, unknown
from mlx_visalign.provenance import as_json
from mlx_visalign.records import read_text

# Inside the package once installed, beside it in a checkout.
RECIPES = next(path for path in (Path(__file__).parent / "recipes", Path(__file__).parents[1] / "recipes") if path.is_dir())
TINY_WORLD = "tiny-world"


@dataclass(frozen=True)
class Recipe:
    """What is aligned, on which images.

    method      a method's name, such as seva
    model       the folder of a LLaVA, or "tiny", the embedded one
    images      a folder of unlabelled images, several folders or files, a pattern such as "photos/*.jpg", or "tiny-world",
                whose scenes are drawn
    prompts     a prompts.jsonl to ask instead of the questions made up about `images`, which then says where its images
                are (none: in the file's own folder) and nothing more
    count       at most so many images, at least 1; of the tiny world exactly so many
    questions   existence questions about each image, 0 or more
    vocabulary  a file of objects they may be about beside COCO's 80
    scorer      "module:function" of one's own that scores texts against images in CLIP's place, of the form `scorers.Score`
    skip_bad    leave out images and rows of `prompts` that cannot be used, where one otherwise stops the run
    cache_gb    memory for the image features of clean images, 0 or more; at 7B an image takes 1.2 MB
    scenes      on how many scenes of the tiny world the model is measured before and after, at least 1, and of which
    split       split: held-out ones are for reporting, never for choosing settings
    controls    train and measure the controls too (see `controls`), which takes scenes whose content is known
    seed        everything random depends on it and on nothing else; in the tiny world also which scenes
    """

    method: str
    model: str = "tiny"
    images: str | tuple[str, ...] | None = None
    prompts: str | None = None
    count: int | None = None
    questions: int = 2
    vocabulary: str | None = None
    scorer: str | None = None
    skip_bad: bool = False
    cache_gb: float = 1.0
    scenes: int = 500
    split: Literal["validation", "held-out"] = "validation"
    controls: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.images is None and self.prompts is None) or (self.prompts is not None and self.images == TINY_WORLD):
            raise UserError("Name either a folder of images (--images) or a file of prompts about images (--prompts).")
        if isinstance(self.images, tuple) and (self.prompts is not None or TINY_WORLD in self.images):
            what = "where the images of --prompts are" if self.prompts is not None else f"{TINY_WORLD}, which stands alone"
            raise UserError(f"--images names {len(self.images):,} files or folders. Name one folder: {what}.")
        if (self.count is not None and self.count < 1) or self.scenes < 1 or min(self.questions, self.seed, self.cache_gb) < 0:
            raise UserError(f"Expected count >= 1, scenes >= 1, questions >= 0, seed >= 0 and cache_gb >= 0, got {self}.")
        if self.images == TINY_WORLD and self.count is None:
            raise UserError("How many scenes of the tiny world? Say it with --count (the demo takes 600).")
        if self.controls and self.images != TINY_WORLD:
            raise UserError(
                "Controls need images whose content is known, or they measure nothing, and of your own images nobody knows it: "
                "leave --controls out, or take --images tiny-world."
            )


@dataclass(frozen=True)
class Plan:
    """A recipe, the module of its method, and that method's checked settings."""

    recipe: Recipe
    method: Any
    settings: Any

    @property
    def config(self) -> dict[str, Any]:
        """Every setting by its name; as YAML it is a recipe again."""
        return as_json({**asdict(self.recipe), "settings": asdict(self.settings)})


def find_recipe(name: str) -> Path:
    """A recipe's file, by its path or, for those that come with the package, by its name."""
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if os.path.isfile(path):  # Path.is_file raises for a name that is too long
            return path
    raise UserError(f"{name} is no file, and among the recipes that come along: {unknown(name, list_recipes())}")


def list_recipes() -> dict[str, str]:
    """The recipes that come with the package, and what each says of itself in its first line."""
    return {path.stem: read_text(path).partition("\n")[0].strip("# ") for path in sorted(RECIPES.glob("*.yaml"))}


def make_plan(
    path: Path, find_method: Callable[[str], Any], preset: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Plan:
    """Read a recipe. `find_method` gives the module of a method by its name; `overrides` are as in `load_recipe`."""
    where = f"{path} (or the command line)"
    values = load_recipe(path, preset, overrides)
    settings = values.pop("settings", {})
    name = values.get("method")

    def settings_of(name: str) -> tuple[Any, Any]:
        method = find_method(name)
        return method, build(method.Settings, settings, f"{where}: settings")

    jobs: list[Callable[[], Any]] = [partial(build, Recipe, values, where)]
    recipe, (method, own) = collect(jobs + ([partial(settings_of, name)] if isinstance(name, str) else []))
    _require_there(recipe)
    if recipe.scorer is not None and "clip" not in {field.name for field in fields(method.Settings)}:
        raise UserError(f"{where}: scorer: the method {recipe.method} scores nothing.")
    return Plan(recipe, method, own)


def _require_there(recipe: Recipe) -> None:
    """What is missing is told now, and not when everything before it is done."""
    from mlx_visalign.photos import places  # only now, for it brings MLX along

    named = {name: asdict(recipe)[name] for name in ("model", "prompts", "vocabulary")}
    given = {name: path for name, path in named.items() if path not in (None, "tiny")}
    problems = [f"{name}: there is no file or folder {path}." for name, path in given.items() if not os.path.exists(path)]
    if recipe.images not in (None, TINY_WORLD):
        try:
            places(recipe.images)
        except UserError as error:
            problems.append(str(error))
    refuse(problems)
