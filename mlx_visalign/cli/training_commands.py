"""The commands that train, or show what would be trained."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Group

from mlx_visalign.cli.output import Result, lines, plain, told
from mlx_visalign.cli.preview import longest_answer, measure, show_pair
from mlx_visalign.cli.training_options import as_given, recipe_values
from mlx_visalign.data.image_folder import content_id
from mlx_visalign.data.pair_formats import PlacedPair, read_placed_pairs
from mlx_visalign.data.records import Pair
from mlx_visalign.inference.context_length import pairs_that_fit, too_long
from mlx_visalign.inference.policy import load
from mlx_visalign.methods.job import Alignment
from mlx_visalign.models.adapter_files import WEIGHTS
from mlx_visalign.pipeline.align import run_recipe
from mlx_visalign.pipeline.dry_run import foresee
from mlx_visalign.pipeline.prompts_stage import images_of_run
from mlx_visalign.preflight.doctor import require_same_model, require_sound
from mlx_visalign.preflight.estimate import for_people, forecast, in_full, tell_of_death, training_needs, warn_if_too_large
from mlx_visalign.preflight.workload import Answering, Workload
from mlx_visalign.reporting.summary import show
from mlx_visalign.runs.recipe import find_recipe, list_recipes, make_plan
from mlx_visalign.runs.run import Run
from mlx_visalign.runs.stage import Row, fingerprint
from mlx_visalign.training.dpo import PreferenceSettings, train_on_pairs, with_reference
from mlx_visalign.training.training_length import foretell
from mlx_visalign.utils.arguments import require_there, swallowed
from mlx_visalign.utils.config import dump, with_overrides
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError, listed
from mlx_visalign.utils.formatting import counted
from mlx_visalign.utils.schema import build

REFERENCE_BATCH = 8  # pairs scored together


def align(options: Namespace) -> Result:
    """`visalign run` and `visalign demo`."""
    if options.config is None:
        swallowed(options, "recipe.images", "method")
    name = options.config or options.method
    if name is None:
        raise UserError("Name a method (visalign run seva ...) or a recipe (visalign run -c recipe.yaml ...).")
    values = recipe_values(options)
    if options.method is not None:
        _require_method(options)
        values["method"] = options.method
    plan = make_plan(find_recipe(name), options.find_method, options.preset, values, as_given(options))
    if options.dry_run:
        return _planned(foresee(plan), dump(plan.config))
    run = Run(options.output or f"runs/{Path(name).stem}", reuse=options.reuse, command=options.again)
    score = options.find_scorer(plan.recipe.scorer) if plan.recipe.scorer else None
    report = run_recipe(plan, run, score=score)
    files = {"report": "report.html", "figures": "report.json"}
    places = {"adapter": str(run.adapter), **{name: str(run.folder / file) for name, file in files.items()}}
    return Result(report | places, Group(show(report), lines(places)))


def _require_method(options: Namespace) -> None:
    """A recipe's name where a method's is expected gets the command that takes it."""
    try:
        options.find_method(options.method)
    except UserError:
        if options.method == "dpo":
            raise UserError(
                "DPO on pairs of your own is `visalign train --data PAIRS --model MODEL --adapter-path OUT`."
            ) from None
        if options.method in list_recipes():
            raise UserError(f"{options.method} is a recipe and no method: visalign run -c {options.method}") from None
        raise


def train(options: Namespace) -> Result:
    """`visalign train`: DPO on anyone's pairs, the reference scored once before."""
    path = find_recipe(options.config)
    settings = with_overrides(
        lambda values: build(PreferenceSettings, values, str(path)),
        path,
        options.preset,
        recipe_values(options),
        as_given(options),
    )
    run = Run(options.adapter_path, command=options.again)
    require_same_model(run.config, run.checked, options.model)
    placed, found = _pairs(options)
    needs = training_needs(settings)
    warn_if_too_large(options.model, forecast(options.model, needs))
    policy = load(options.model)
    pairs = [one.pair for one in pairs_that_fit(policy, placed, options.skip_bad)]
    measured = measure(policy, pairs)
    longest = longest_answer(measured)
    needs |= {"prompt": measured["prompt_tokens"]["max"], "answer": longest, "images": measured["images"]}
    expected = forecast(options.model, needs, _scoring(pairs, settings, longest))
    loop = settings.loop(len(pairs))
    too_little = foretell(loop, len(pairs))
    plan = {"format": found, **measured, "updates": loop.iters, **({"too_little": too_little} if too_little else {})}
    if options.dry_run:
        return _planned(plan | in_full(expected), dump(asdict(settings)))
    config = {"model": options.model, "data": options.data, "seed": options.seed, "settings": asdict(settings)}
    _not_somebody_elses(run.folder)
    with run:
        if run.died_in is not None:
            tell_of_death(run.died_in, expected)
        if not run.config.exists():  # other settings may yet be refused
            run.start(config)
        require_sound(policy, run.checked)
        scored = run.records(
            Pair,
            "pairs",
            pairs,
            lambda some: [pair.to_row() for pair in with_reference(policy, some)],
            settings=Alignment(run, policy, [], options.seed).about() | {"image_contents": _contents(pairs)},
            batch=REFERENCE_BATCH,
            title="scoring the reference",
        )
        with run.working("the training"):
            train_on_pairs(policy, scored, settings, run.folder, options.seed)
        policy.save_adapter(run.folder, method="dpo", round=1)
        run.start(config)
    return told(plan | {"adapter": str(run.folder)})


def _planned(figures: Row, config: str) -> Result:
    return Result(figures, Group(lines(for_people(figures)), plain(config)))


def _pairs(options: Namespace) -> tuple[list[PlacedPair], str]:
    """The pairs with their places, and their format's name. A file in a run's folder may be about images that the run knows."""
    require_there(options, "data", "images")
    file = Path(options.data)
    return read_placed_pairs(file, options.images, options.skip_bad, images_of_run(file.parent))


def _scoring(pairs: Sequence[Pair], settings: PreferenceSettings, longest: int) -> Workload:
    """What a training on pairs does: both answers are read once for the reference, and then trained on."""
    stage = Answering("scoring the reference", len(pairs), 0, REFERENCE_BATCH, longest, read=2)
    return Workload((stage,), settings.prompts_trained(len(pairs)))


def _contents(pairs: Sequence[Pair]) -> str:
    """Tells the pairs' images, as they are now, from what any of them was before it changed."""
    images = dict.fromkeys(image for pair in pairs for image in pair.images)
    return fingerprint([content_id(Path(image)) for image in images])


def _not_somebody_elses(folder: Path) -> None:
    """`train` writes its adapter where other commands read one: it must not write over an adapter it did not make."""
    if (folder / WEIGHTS).exists() and not (folder / "pairs.jsonl").exists():
        raise UserError(f"{folder} holds an adapter that `visalign train` did not make. Name another --adapter-path.")


def check(options: Namespace) -> Result:
    """`visalign check`: a pairs file as it will be trained."""
    placed, found = _pairs(options)
    policy = load(options.model)
    if options.skip_bad:
        placed = pairs_that_fit(policy, placed, skip_bad=True)
    elif faults := [fault for one in placed if (fault := too_long(policy, one))]:
        say(
            listed(
                f"{len(faults):,} of the {counted(len(placed), 'pair')} cannot be trained",
                faults,
                "Leave them out: --skip-bad.",
            )
        )
    pairs = [one.pair for one in placed]
    figures = {"format": found, **measure(policy, pairs)}
    first = show_pair(policy, pairs[0])
    return Result(figures | {"first_pair": first.plain}, Group(lines(figures), "", "The first pair:", first))
