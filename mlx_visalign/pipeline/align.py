"""Runs a recipe, from images to report."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from mlx_visalign.data.records import Pair, read_jsonl
from mlx_visalign.data.training_log import read_metrics
from mlx_visalign.evaluation.runner import Evaluation, changes
from mlx_visalign.inference.context_length import require_prompts_fit
from mlx_visalign.inference.policy import load
from mlx_visalign.methods.job import Job
from mlx_visalign.models.adapter_files import fingerprint, read_adapter
from mlx_visalign.pipeline.controls import controls_of, measure_control
from mlx_visalign.pipeline.dry_run import forecast_of, own_functions, protocol_of, too_little_training
from mlx_visalign.pipeline.evaluations import measure
from mlx_visalign.pipeline.prompts_stage import ask
from mlx_visalign.preflight.doctor import require_same_model, require_sound
from mlx_visalign.preflight.estimate import report_previous_kill, warn_if_too_large
from mlx_visalign.reporting.controls_text import NAMES
from mlx_visalign.reporting.run_page import ReportPage
from mlx_visalign.reporting.summary import as_rows, make_report, read_report, write_report
from mlx_visalign.runs.image_sources import source_of
from mlx_visalign.runs.recipe import Plan
from mlx_visalign.runs.run import Run, read_versions
from mlx_visalign.runs.stage import Row
from mlx_visalign.scorers import Reward, Score
from mlx_visalign.training.config import PPOSettings
from mlx_visalign.training.dpo import PreferenceSettings, reward_accuracy
from mlx_visalign.training.training_length import look_back
from mlx_visalign.utils.config import load_recipe
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import parse_json, read_text
from mlx_visalign.utils.own_code import versioned


def run_recipe(
    plan: Plan,
    run: Run,
    on_metrics: Callable[[Row], None] | None = None,
    score: Score | None = None,
    reward: Reward | None = None,
    first: Callable[[Job], None] | None = None,
) -> Row:
    """Align a model; returns the report (report.json).

    Steps that are finished in the run's folder are not repeated. `on_metrics` gets the row of every update; `score` and
    `reward` are the functions that the recipe's `scorer` and `reward_function` name, and are found by these names if not given.
    `first` is called before the training; what it does must resume as stages do.
    """
    begun = load_recipe(run.config) if run.config.exists() else plan.config
    # A finished run with controls also answers a request without them.
    if run.report.exists() and begun in (plan.config, plan.config | {"controls": True}):
        say(f"{run.folder}: this run is complete; nothing is left to do.")
        return read_report(run.report)
    if begun.get("method") != plan.recipe.method:
        raise UserError(
            f"{run.folder} contains a run of the method {begun.get('method')}, not of {plan.recipe.method}. "
            "Choose another folder with --output; --reuse copies the stages that both have in common."
        )
    require_same_model(run.config, run.checked, plan.recipe.model)
    score, reward = own_functions(plan, score, reward)
    with run:
        if not run.config.exists():
            run.start(plan.config)
        page = ReportPage(run, plan.config, plan.method.description, source_of(plan.recipe))
        run.after_stage = page.refresh
        try:
            return _carry_out(plan, run, page, on_metrics, score, reward, first)
        except UserError as error:
            page.stopped = str(error)
            page.write()
            raise


def _carry_out(
    plan: Plan,
    run: Run,
    page: ReportPage,
    on_metrics: Callable[[Row], None] | None,
    score: Score | None,
    reward: Reward | None,
    first: Callable[[Job], None] | None,
) -> Row:
    prompts, kept = ask(plan.recipe, run)
    too_little = too_little_training(plan, prompts)
    if too_little and not run.metrics.exists():  # once the training has begun, it warns by itself
        say(f"warning: {too_little}")
    expected = forecast_of(plan, prompts, kept)
    warn_if_too_large(plan.recipe.model, expected)
    if run.died_in is not None:
        report_previous_kill(run.died_in, expected)
    policy = load(plan.recipe.model, cache_gb=plan.recipe.cache_gb)
    require_prompts_fit(policy, [*prompts, *kept], max(stage.tokens for stage in expected.workload.stages))
    require_sound(policy, run.checked)
    recipe, source = plan.recipe, page.source
    job = Job(run, policy, prompts, recipe.seed, kept, _shown(page, on_metrics), source.vocabulary())
    job = replace(job, score=score, score_name=versioned(recipe.scorer), method_code=plan.method.code)
    job = replace(job, reward=reward, reward_name=versioned(recipe.reward_function))
    benchmark, protocol = source.benchmark(prompts, kept, run.folder), protocol_of(plan)
    page.before = before = measure(job, benchmark, "before", {}, protocol)
    measured: list[Evaluation] = []
    job = replace(job, after_round=lambda: measured.append(_measure_trained(job, before)))
    if first is not None:
        first(job)
    with run.working("the training"):
        plan.method.train(job, plan.settings)
    page.after = after = _measure_trained(job, before)
    plan.method.picture(job, plan.settings)
    held_out_pairs = _held_out_accuracy(job, plan.settings.train)
    controls = _measure_controls(plan, job, before, page) if plan.recipe.controls else {}
    run.start(plan.config)  # again: settings that no stage depends on may have changed since the run began
    training = _finished_rows(run)
    page.report = report = make_report(
        before,
        after,
        training=training,
        held_out_pairs=held_out_pairs,
        versions=read_versions(run.versions),
        settings=plan.config,
    )
    report["too_little"] = _looked_back(plan, run, training)
    if measured:
        report["rounds"] = _rounds(run, measured)
    if controls:
        report["controls"] = controls
    judge = page.judge()
    if judge is not None:
        report["judge"] = judge.to_row()
    page.write()
    write_report(report, before, after, training, run.report, run.plots)  # last: its presence marks the run complete
    return report


def _shown(page: ReportPage, on_metrics: Callable[[Row], None] | None) -> Callable[[Row], None]:
    """The callback for metrics: refreshes the page, then calls the caller's."""

    def follow(row: Row) -> None:
        page.refresh()
        if on_metrics is not None:
            on_metrics(row)

    return follow


def _rounds(run: Run, measured: Sequence[Evaluation]) -> list[Row]:
    """Each round's cost, and the figures measured after it."""
    costs = parse_json(read_text(run.rounds), str(run.rounds))
    return [cost | {"figures": as_rows(evaluation.figures)} for cost, evaluation in zip(costs, measured, strict=True)]


def _finished_rows(run: Run) -> list[Row]:
    """A finished training's rows. Raises `UserError` if there are none, or the first is damaged."""
    rows = read_metrics(run.metrics)
    if not rows or not {"iterations_per_second", "learning_rate"} <= rows[0].keys():
        raise UserError(
            f"{run.metrics} is damaged: the report needs its rows, and none can be read. Restore it from a copy, or start "
            "again with another output folder."
        )
    return rows


def _looked_back(plan: Plan, run: Run, training: Sequence[Row]) -> str | None:
    """Why the training, or one of its rounds, hardly changed the model; None if it was long enough."""
    train = plan.settings.train
    if not isinstance(train, PreferenceSettings):
        return look_back(training, train, None)
    said = []
    files = run.pairs()
    for number, file in enumerate(files, 1):
        rows = [row for row in training if row.get("round", 1) == number]
        sentence = look_back(rows, train, len(read_jsonl(file, Pair)))
        if sentence:
            said.append(f"Round {number}: {sentence}" if len(files) > 1 else sentence)
    return " ".join(said) or None


def _measure_controls(plan: Plan, job: Job, before: Evaluation, page: ReportPage) -> Row:
    """What each control changed, by the control's name in reports."""
    found = {}
    for control in controls_of(plan.settings):
        name = NAMES[control]
        say(f"control: {name}")
        policy = load(plan.recipe.model, cache_gb=plan.recipe.cache_gb)
        fresh = replace(job, policy=policy, on_metrics=lambda _: page.refresh())
        with job.run.working(f"the control {control}"):
            folder = job.run.control(control)
            one = measure_control(control, fresh, folder, plan.method, plan.settings, before, "after")
        found[name] = {"change": as_rows(changes(before, one))}
    return found


def _held_out_accuracy(job: Job, training: PreferenceSettings | PPOSettings) -> dict[str, float] | None:
    """The trained model's reward accuracy on held-out pairs; None if the method made no such pairs."""
    file = job.run.held_out_pairs
    pairs = [job.located(pair) for pair in read_jsonl(file, Pair)] if file.exists() else []
    if not pairs or not isinstance(training, PreferenceSettings):
        return None
    return reward_accuracy(job.policy, pairs, training.beta, training.batch_size)


def _measure_trained(job: Job, before: Evaluation) -> Evaluation:
    """The same evaluation after training, in after.jsonl, after-2.jsonl ... by round, so that earlier rounds' are kept."""
    rounds = len(read_adapter(job.run.adapter)[0]["round_ranks"])
    moment = "after" if rounds == 1 else f"after-{rounds}"
    return measure(job, before.benchmark, moment, {"adapter": fingerprint(job.run.adapter)}, before.protocol)
