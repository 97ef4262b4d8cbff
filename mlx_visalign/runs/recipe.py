"""A recipe: model, images, method and settings of a run.

It is a YAML file (see `config`) with the fields of `Recipe` and, under `settings`, those of the method's `Settings`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mlx_visalign.utils.config import with_overrides
from mlx_visalign.utils.errors import UserError, collect, refuse
from mlx_visalign.utils.files import read_text
from mlx_visalign.utils.provenance import as_json
from mlx_visalign.utils.schema import build, convert, dotted, nearest, require, unknown, with_new_names, within

# Inside the installed package, beside the package in a checkout.
RECIPES = next(path for path in (Path(__file__).parents[1] / "recipes", Path(__file__).parents[2] / "recipes") if path.is_dir())


@dataclass(frozen=True)
class Recipe:
    """The fields of a recipe, without the method's settings.

    method      a method's name, such as seva
    model       a LLaVA folder, a model on the Hub (owner/name), or "tiny", the built-in one; optional where `images` is a
                world that has a model of its own
    images      a folder of unlabelled images, several folders or files, a pattern such as "photos/*.jpg", or a world with
                known content (see `worlds`), such as "tiny-world"
    prompts     a prompts.jsonl that replaces the generated questions; `images` is then only the folder of its images
                (none: the file's own folder)
    max_images  maximum number of images, at least 1; for a world the exact number
    questions_per_image
                existence questions about each image, 0 or more
    vocabulary  a file of objects to ask about, in addition to COCO's 80
    scorer      "file.py:function" or "module:function" that scores texts against images in place of CLIP, of the form
                `scorers.Score`
    reward_function
                "file.py" (its function `reward`), "file.py:function" or "module:function" that rates answers to prompts about
                images, of the form `scorers.Reward`; for methods that take one
    skip_bad    leave out images and rows of `prompts` that cannot be used; by default one of them stops the run
    cache_gb    memory for the image features of clean images, 0 or more; at 7B an image takes 1.2 MB
    eval_images
                number of a world's images that the model is measured on before and after, at least 1
    split       the world's split they are from: held-out images are for reporting, never for choosing settings
    controls    also train and measure the controls (see `controls`); needs images with known content
    seed        the only source of randomness; in a world it also selects the images
    """

    method: str
    model: str = ""
    images: str | tuple[str, ...] | None = None
    prompts: str | None = None
    max_images: int | None = None
    questions_per_image: int = 2
    vocabulary: str | None = None
    scorer: str | None = None
    reward_function: str | None = None
    skip_bad: bool = False
    cache_gb: float = 1.0
    eval_images: int = 500
    split: Literal["validation", "held-out"] = "validation"
    controls: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        from mlx_visalign.runs.worlds import WORLDS, find_world  # imported late: it imports MLX

        world = find_world(self.images)
        if (self.images is None and self.prompts is None) or (self.prompts is not None and world is not None):
            raise UserError("Name either a folder of images (--images) or a file of prompts about images (--prompts).")
        if isinstance(self.images, tuple):
            if self.prompts is not None:
                names = f"--images names {len(self.images):,} files or folders."
                raise UserError(f"{names} With --prompts, name one folder: the one that holds the prompts' images.")
            for name in self.images:
                if name in WORLDS:
                    raise UserError(f"--images: {name} cannot be combined with other images.")
        if not self.model:
            object.__setattr__(self, "model", named_model(None, default=None if world is None else world.model))
        require(
            self,
            max_images=(self.max_images is None or self.max_images >= 1, "1 or more"),
            questions_per_image=(self.questions_per_image >= 0, "0 or more"),
            cache_gb=(self.cache_gb >= 0, "0 or more"),
            eval_images=(self.eval_images >= 1, "1 or more"),
            seed=(self.seed >= 0, "0 or more"),
        )
        if world is not None and self.max_images is None:
            raise UserError(f"How many {world.title}? Set --max-images (the demo uses 600).")
        if self.controls and world is None:
            raise UserError(
                "Controls need images whose content is known, and your own images have no labels: leave out --controls, or "
                f"use --images {' or '.join(WORLDS)}."
            )


@dataclass(frozen=True)
class Plan:
    """A recipe, its method, and that method's checked settings."""

    recipe: Recipe
    method: Any
    settings: Any

    @property
    def config(self) -> dict[str, Any]:
        """All settings by name; written as YAML, a recipe."""
        return as_json({**asdict(self.recipe), "settings": asdict(self.settings)})


def named_model(model: str | None, default: str | None) -> str:
    """The named model, or the default.

    Raises `UserError` if there is neither: the tiny model is never a silent fallback for the user's own.
    """
    if model is None:
        model = default
    if model is not None:
        return model
    raise UserError(
        "Which model? Name a LLaVA folder or one on the Hub: --model MODEL (model= in Python, `model:` in a recipe). "
        "The built-in toy model is tiny."
    )


def find_recipe(name: str) -> Path:
    """A recipe's file, by path or built-in name."""
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if os.path.isfile(path):  # Path.is_file raises for a name that is too long
            return path
    raise UserError(f"There is no recipe '{name}', neither a file nor a built-in one. {nearest(name, list_recipes())}")


def list_recipes() -> dict[str, str]:
    """The built-in recipes, each with its first line."""
    return {path.stem: read_text(path).partition("\n")[0].strip("# ") for path in sorted(RECIPES.glob("*.yaml"))}


def make_plan(
    path: Path,
    find_method: Callable[[str], Any],
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    called: Callable[[str], str] = str,
) -> Plan:
    """Read a recipe into a checked plan.

    `find_method` returns a method by name. `overrides` are as in `load_recipe`; `called` names one as the user wrote it.
    """

    def make(values: dict[str, Any]) -> Plan:
        return _make(values, str(path), find_method)

    try:
        return with_overrides(make, path, preset, overrides or {}, called)
    except UserError as error:  # a fault is never in a built-in recipe, so its path is left out of the message
        refuse([fault.removeprefix(f"{path}: " if path.parent == RECIPES else "") for fault in error.each])
        raise


def _make(values: dict[str, Any], where: str, find_method: Callable[[str], Any]) -> Plan:
    values = with_new_names(values, {field.name for field in fields(Recipe)})
    settings = values.pop("settings", {})
    if "method" not in values:
        raise UserError(
            f"{where}: no method is named. Add a line such as `method: seva`, or use `visalign run METHOD -c FILE`."
        )
    name = convert(values["method"], str, f"{where}: method")

    def named_method() -> Any:
        with within(where):
            return find_method(name)

    try:
        method = named_method()
    except UserError:
        both: list[Callable[[], Any]] = [named_method, partial(build, Recipe, values, where)]
        collect(both)  # raises the faults of both together
        raise
    own = [field.name for field in fields(Recipe)]
    jobs: list[Callable[[], Any]] = [
        partial(_require_known, values, settings, method.Settings, where),
        partial(build, Recipe, {name: value for name, value in values.items() if name in own}, where),
        partial(build, method.Settings, _without(settings, own), f"{where}: settings"),
    ]
    _, recipe, checked = collect(jobs)
    with within(where):
        require_files(recipe, checked)
    if recipe.scorer is not None and "clip" not in {field.name for field in fields(method.Settings)}:
        raise UserError(f"{where}: scorer: the method {recipe.method} uses no scorer.")
    if recipe.reward_function is not None and not getattr(checked, "NEEDS_REWARD", False):
        raise UserError(f"{where}: reward_function: the method {recipe.method} takes no reward of your own.")
    return Plan(recipe, method, checked)


def _without(settings: Any, names: Sequence[str]) -> Any:
    """The settings without these names; anything but a mapping is left for `build` to refuse."""
    if not isinstance(settings, Mapping):
        return settings
    return {name: value for name, value in settings.items() if name not in names}


def _require_known(values: Mapping[str, Any], settings: Any, kind: type, where: str) -> None:
    """Raise `UserError` for unknown names beside `settings`, and for fields of the recipe inside it."""
    own = [field.name for field in fields(Recipe)]
    known = [*own, *(f"settings.{setting}" for setting in dotted(kind))]
    inside = [name for name in settings if name in own] if isinstance(settings, Mapping) else []
    refuse(
        [f"{where}: {unknown(name, known)}" for name in values if name not in own]
        + [f"{where}: settings: {n} is not a setting of the method; write it beside `settings`, not in it." for n in inside]
    )


def require_files(recipe: Recipe, settings: Any) -> None:
    """Raise `UserError` for files that do not exist.

    Called before any work starts. Of the settings only `clip` is looked at.
    """
    from mlx_visalign.data.image_folder import places  # imported late: these import MLX
    from mlx_visalign.models.hub import find_config
    from mlx_visalign.runs.worlds import find_world

    models = {"model": recipe.model, "settings: clip": getattr(settings, "clip", None)}
    files = {name: asdict(recipe)[name] for name in ("prompts", "vocabulary")}
    lost = [name for name, model in models.items() if model not in (None, "tiny") and not os.path.exists(find_config(model))]
    problems = [f"{n}: there is no file or folder {models[n]}, and it is not a name on the Hub (owner/name)." for n in lost]
    problems += [f"{n}: there is no file or folder {path}." for n, path in files.items() if path and not os.path.exists(path)]
    if recipe.images is not None and find_world(recipe.images) is None:
        try:
            places(recipe.images)
        except UserError as error:
            problems += error.each
    refuse(problems)
