"""The Python API: what the commands do, for notebooks."""

import html
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_visalign import methods
from mlx_visalign.data.images import check_image
from mlx_visalign.data.pair_formats import PlacedPair
from mlx_visalign.data.records import Pair
from mlx_visalign.inference.context_length import pairs_that_fit
from mlx_visalign.inference.policy import Policy
from mlx_visalign.models.lora import adapters
from mlx_visalign.pipeline.align import run_recipe
from mlx_visalign.pipeline.pair_training import read_pairs, require_own, score_reference
from mlx_visalign.runs.recipe import find_recipe, make_plan
from mlx_visalign.runs.run import Run
from mlx_visalign.scorers import checked, checked_reward
from mlx_visalign.training.dpo import PreferenceSettings, train_on_pairs
from mlx_visalign.utils.config import dotted_values
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_text
from mlx_visalign.utils.links import are_followed, following_links
from mlx_visalign.utils.schema import build, shown


class Aligned(dict[str, Any]):
    """A finished run: its report, and where its files are.

    adapter  the adapter's folder, for `load(model, adapter_path=...)`
    page     report.html, which a notebook shows in place of this object
    """

    def __init__(self, report: Mapping[str, Any], run: Run):
        super().__init__(report)
        self.adapter, self.page = run.adapter, run.page

    def _repr_html_(self) -> str:
        frame = "width: 100%; height: 48em; border: 0"
        return f'<iframe style="{frame}" srcdoc="{html.escape(read_text(self.page))}"></iframe>'


def align(
    recipe: str | Path = "seva",
    *,
    output: str | Path,
    preset: str | None = None,
    reuse: str | Path | None = None,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
    settings: Mapping[str, Any] | None = None,
    follow_links: bool = False,
    **values: Any,
) -> Aligned:
    """Align a model as `visalign run` does.

    Returns the report (the content of report.json) with the paths of adapter and page.

    recipe      a method's name, a recipe file, or a Python file with a method of your own (FILE.py)
    output      the run's folder; the same folder with the same settings resumes a stopped run
    preset      one of the recipe's presets
    reuse       the folder of another run whose finished stages are copied where their settings agree
    on_metrics  called with a row, a dict, after every update: print it, plot it, or raise KeyboardInterrupt to stop
    settings    the method's settings that differ from the recipe: {"view": "crop", "train": {"epochs": 2}}; None sets null
    follow_links  whether links in your folders may lead out of them
    values      fields of `Recipe` that differ: model, images, max_images, seed and so on; None sets null. `scorer` and
                `reward_function` may be the functions themselves

    Raises `UserError` for anything missing, unknown, of the wrong type or out of range.
    """
    _require("recipe", recipe, (str, Path), "a method's name or a recipe file")
    _require("output", output, (str, Path), "a folder's path")
    _require("preset", preset, (str, type(None)), "a preset's name")
    _require("reuse", reuse, (str, Path, type(None)), "a run's folder")
    _require("settings", settings, (Mapping, type(None)), 'named values, such as {"train": {"epochs": 2}}')
    if on_metrics is not None and not callable(on_metrics):
        raise UserError(f"on_metrics must be a function that takes a dict, got {shown(on_metrics)}.")
    own = {name: values[name] for name in ("scorer", "reward_function") if callable(values.get(name))}
    values |= {name: _name_of(function) for name, function in own.items()}
    overrides = {**_plain(values), **_plain(dotted_values(settings or {}, "settings."))}
    if Path(recipe).suffix == ".py":
        recipe = overrides["method"] = methods.add_file(recipe)
    path = methods.recipe_of(str(recipe)) if str(recipe) in methods.names() else find_recipe(str(recipe))
    plan = make_plan(path, methods.find, preset, overrides, _as_given)
    score = checked(own["scorer"], str(plan.recipe.scorer)) if "scorer" in own else None
    reward = checked_reward(own["reward_function"], str(plan.recipe.reward_function)) if "reward_function" in own else None
    with following_links(follow_links or are_followed()):
        run = Run(output, reuse=reuse)
        return Aligned(run_recipe(plan, run, on_metrics, score, reward), run)


def dpo_train(
    policy: Policy,
    pairs: Sequence[Pair] | str | Path,
    *,
    output: str | Path,
    seed: int = 0,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
    **settings: Any,
) -> Path:
    """Train a policy with DPO; returns the adapter's folder.

    pairs       `Pair`s, whose images are paths, or a file in any of the formats that `visalign train` reads
    output      the folder of adapter and training log; the same folder with the same settings resumes a stopped training
    on_metrics  called with a row, a dict, after every update
    settings    fields of `PreferenceSettings`: beta, epochs, iters, learning_rate, lora={"rank": 16} and so on

    The reference is the policy as given, scored once before training. Afterwards the policy has the trained adapter, and
    `policy.adapter_off()` is the reference again. Raises `UserError` for a setting that is unknown or out of range, pairs
    that do not fit, and the output folder of another training.
    """
    _require("policy", policy, (Policy,), "a loaded policy")
    _require("output", output, (str, Path), "a folder's path")
    _require("pairs", pairs, (str, Path, Sequence), "a file of pairs, or a list of Pair")
    if isinstance(pairs, str | Path):
        placed, _ = read_pairs(str(pairs), None, skip_bad=False)
    else:
        placed = [PlacedPair(_pair(pair, number), f"pairs[{number}]") for number, pair in enumerate(pairs)]
    wanted = build(PreferenceSettings, _plain(settings), "dpo_train")
    if adapters(policy.model):
        raise UserError("The policy has an adapter already. Load the model again, without an adapter, and train that.")
    fitting = pairs_that_fit(policy, placed, skip_bad=False)
    with Run(output) as run:
        require_own(run.folder)
        scored = score_reference(policy, [one.pair for one in fitting], wanted, run, seed)
        train_on_pairs(policy, scored, wanted, run.folder, seed, on_metrics)
        policy.save_adapter(run.folder, method="dpo", round=1)
    return run.folder


def _pair(pair: object, number: int) -> Pair:
    if not isinstance(pair, Pair):
        raise UserError(f"pairs[{number}] must be a Pair, got {shown(pair)}.")
    for image in pair.images:
        check_image(image)
    return replace(pair, images=tuple(os.path.abspath(image) for image in pair.images))  # relative would mean the run's folder


def _name_of(function: Callable[..., Any]) -> str:
    """The name by which a run recognises a function."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Paths as strings, as in recipes."""
    return {name: _as_text(value) for name, value in values.items()}


def _as_given(name: str) -> str:
    """An override as the user wrote it: the argument max_images=, or the setting train.epochs."""
    return f"The setting {name.removeprefix('settings.')}" if name.startswith("settings.") else f"The argument {name}="


def _require(name: str, value: object, kinds: tuple[type, ...], expected: str) -> None:
    if not isinstance(value, kinds):
        raise UserError(f"The argument {name}= must be {expected}, got {shown(value)}.")


def _as_text(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_text(one) for one in value]
    return str(value) if isinstance(value, Path) else value
