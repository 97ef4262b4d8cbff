"""A recipe carried out, from images to report: prompts, the method's own stages, and what is measured before and after."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mlx_visalign.alignment import Alignment
from mlx_visalign.best_of import SAMPLES
from mlx_visalign.config import load_recipe
from mlx_visalign.control_words import NAMES
from mlx_visalign.controls import controls_of, measure_control
from mlx_visalign.doctor import require_sound
from mlx_visalign.errors import UserError
from mlx_visalign.evals.benchmark import Benchmark, world_benchmark
from mlx_visalign.evaluate import Evaluation, Protocol, changes
from mlx_visalign.measuring import READ_TOGETHER, measure
from mlx_visalign.memory_plan import Forecast, forecast, in_full, tell_of_death, training_needs, warn_if_too_large
from mlx_visalign.metrics import read_metrics
from mlx_visalign.photos import Photo, content_id, find_photos, held_out, require_unchanged
from mlx_visalign.policy import load
from mlx_visalign.ppo_settings import PPOSettings
from mlx_visalign.preference import PreferenceSettings, reward_accuracy
from mlx_visalign.progress import say
from mlx_visalign.prompts import DESCRIBE, Mix, make_prompts, read_prompts, world_mix, world_photos
from mlx_visalign.recipe import TINY_WORLD, Plan, Recipe
from mlx_visalign.records import Pair, Prompt, read_jsonl, read_text
from mlx_visalign.report import as_rows, make_report, write_report
from mlx_visalign.report_page import ReportPage
from mlx_visalign.run import Run
from mlx_visalign.scorers import Score
from mlx_visalign.scorers.clip import require_judge
from mlx_visalign.stage import Row, fingerprint
from mlx_visalign.vlm import read_json
from mlx_visalign.vocabulary import Vocabulary, coco80, read_vocabulary
from mlx_visalign.weights import fingerprint as weights_fingerprint
from mlx_visalign.weights import read_adapter
from mlx_visalign.workload import Answering

PICTURES = 24  # of the user's images, described before and after; on them nothing is measured but length


@dataclass(frozen=True)
class Asked(Prompt):
    """A prompt of a run: whether it is kept out of the training, and what tells its image from what it may become."""

    held_out: bool = field(kw_only=True)
    content: str = ""  # runs of earlier versions did not write it down

    @property
    def as_prompt(self) -> Prompt:
        return Prompt(self.id, self.image, self.prompt, self.kind)


def run_recipe(plan: Plan, run: Run, on_metrics: Callable[[Row], None] | None = None, score: Score | None = None) -> Row:
    """Align a model and report on it: returns what report.json holds.

    Whatever the run's folder holds already is not done again. `on_metrics` gets the row of every update; `score` is the
    function that the recipe's `scorer` names.
    """
    report_file = run.folder / "report.json"
    begun = load_recipe(run.config) if run.config.exists() else plan.config
    # Controls that a finished run has, and that nobody asks for now, stay.
    if report_file.exists() and begun in (plan.config, plan.config | {"controls": True}):
        say(f"{run.folder}: this run is finished and nothing is left to do.")
        return read_json(report_file)
    if begun.get("method") != plan.recipe.method:
        raise UserError(
            f"{run.folder} holds a run of the method {begun.get('method')}, and this is one of {plan.recipe.method}. "
            "Name another folder with --output; --reuse takes over what the two have in common."
        )
    with run:
        if not run.config.exists():
            run.start(plan.config)
        page = ReportPage(run, plan.config, str(plan.method.__doc__).partition("\n")[0])
        run.after_stage = page.refresh
        try:
            return _carry_out(plan, run, page, on_metrics, score)
        except UserError as error:
            page.stopped = str(error)
            page.write()
            raise


def _carry_out(plan: Plan, run: Run, page: ReportPage, on_metrics: Callable[[Row], None] | None, score: Score | None) -> Row:
    prompts, kept = ask(plan.recipe, run)
    expected = forecast_of(plan, prompts, kept)
    warn_if_too_large(plan.recipe.model, expected)
    if run.died_in is not None:
        tell_of_death(run.died_in, expected)
    policy, vocabulary = load(plan.recipe.model, cache_gb=plan.recipe.cache_gb), _vocabulary(plan.recipe)
    judge = plan.settings.workload(prompts).judge
    if judge is not None and score is None:  # before the first answer, not hours later
        require_judge(judge[0], policy)
    require_sound(policy, run.checked)
    shown, name = _shown(page, on_metrics), plan.recipe.scorer or ""
    job = Alignment(run, policy, prompts, plan.recipe.seed, kept, shown, vocabulary, score, name)
    benchmark = _benchmark(plan.recipe, job)
    page.before = before = measure(job, benchmark, "before", {})
    measured: list[Evaluation] = []
    job = replace(job, after_round=lambda: measured.append(_measure_trained(job, benchmark)))
    with run.working("the training"):
        plan.method.train(job, plan.settings)
    page.after = after = _measure_trained(job, benchmark)
    plan.method.picture(job, plan.settings)
    held_out_pairs = _held_out_accuracy(job, plan.settings.train)
    controls = _measure_controls(plan, job, before, page) if plan.recipe.controls else {}
    run.start(plan.config)  # as it ended: settings that no stage depends on may have changed since it began
    training = read_metrics(run.metrics)
    page.report = report = make_report(
        before,
        after,
        training=training,
        held_out_pairs=held_out_pairs,
        versions=json.loads(read_text(run.versions)),
        settings=plan.config,
    )
    if measured:
        report["rounds"] = _rounds(run, measured)
    if controls:
        report["controls"] = controls
    page.write()
    write_report(report, before, after, training, run.folder / "report.json", run.plots)  # last: where it is, all is done
    return report


def _shown(page: ReportPage, on_metrics: Callable[[Row], None] | None) -> Callable[[Row], None]:
    """What follows the training: the page, then whatever the caller wants."""

    def follow(row: Row) -> None:
        page.refresh()
        if on_metrics is not None:
            on_metrics(row)

    return follow


def _rounds(run: Run, measured: Sequence[Evaluation]) -> list[Row]:
    """What each round cost and brought, and what was measured after it."""
    costs = json.loads(read_text(run.rounds))
    return [cost | {"figures": as_rows(evaluation.figures)} for cost, evaluation in zip(costs, measured, strict=True)]


def _measure_controls(plan: Plan, job: Alignment, before: Evaluation, page: ReportPage) -> Row:
    """What each control changes, by the name that a report has for it."""
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


def _held_out_accuracy(job: Alignment, training: PreferenceSettings | PPOSettings) -> dict[str, float] | None:
    """How well the trained model tells the answers of held-out pairs apart; None if the method made no such pair."""
    file = job.run.folder / "held_out_pairs.jsonl"
    pairs = [job.located(pair) for pair in read_jsonl(file, Pair)] if file.exists() else []
    return reward_accuracy(job.policy, pairs, training.beta, training.batch_size) if pairs else None


def foresee(plan: Plan) -> Row:
    """What a run would do at most, told without the model: only its answers show how many of them make a pair."""
    with TemporaryDirectory() as folder, Run(folder) as run:
        prompts, kept = ask(plan.recipe, run)
    return {
        "images": len({prompt.image for prompt in prompts}),
        "images_held_out": len({prompt.image for prompt in kept}),
        "prompts": Counter(prompt.kind or "other" for prompt in prompts),
        **plan.settings.foresee(prompts),
        **(_foresee_controls(plan) if plan.recipe.controls else {}),
        **in_full(forecast_of(plan, prompts, kept)),
    }


def _foresee_controls(plan: Plan) -> Row:
    names = controls_of(plan.settings)
    trainings = len(names) - names.count("best")
    words = f"{trainings} more trainings and {SAMPLES * plan.recipe.scenes:,} more answers, in time beside what is told here"
    return {"controls": f"{', '.join(names)}: {words}"}


def forecast_of(plan: Plan, prompts: Sequence[Prompt], kept: Sequence[Prompt]) -> Forecast:
    """What the run asks of the machine: the method's own stages, and the answers before and after."""
    workload = plan.settings.workload(prompts)
    pictures = min(PICTURES, len({prompt.image for prompt in kept or prompts}))
    looked_at, longest = 2 * (plan.recipe.scenes if plan.recipe.images == TINY_WORLD else pictures), Protocol().max_tokens
    looking = Answering("before and after", looked_at, looked_at * longest, READ_TOGETHER, longest, adapters=1)
    cached = {"images": len({prompt.image for prompt in prompts}), "cache_gb": plan.recipe.cache_gb}
    answer = max(stage.tokens for stage in workload.stages)
    needs = {**training_needs(plan.settings.train), **cached, "answer": answer}
    return forecast(plan.recipe.model, needs, replace(workload, stages=(*workload.stages, looking)))


def ask(recipe: Recipe, run: Run) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to train on, and those about the tenth of the images that is held out. Both stand in prompts.jsonl."""
    if recipe.images == TINY_WORLD:
        _draw_world(recipe, run)  # whatever the stage does: another run's prompts are reused without their images
    made_before = run.reuse is not None or (run.folder / "prompts.jsonl").exists()
    asked = run.records(
        Asked,
        "prompts",
        ["all prompts"],
        lambda _: _prompt_rows(recipe, run),
        settings=_what_prompts_depend_on(recipe),
        batch=1,
        title="prompts",
    )
    if made_before and recipe.images != TINY_WORLD:
        require_unchanged({one.image: one.content for one in asked if one.content})
    trained, kept = ([one.as_prompt for one in asked if one.held_out is side] for side in (False, True))
    return trained, kept


def _what_prompts_depend_on(recipe: Recipe) -> Row:
    return {
        "images": recipe.images if recipe.images in (None, TINY_WORLD) else os.path.abspath(recipe.images),
        "count": recipe.count,
        "questions": recipe.questions,
        "prompts": _content(recipe.prompts),
        "vocabulary": _content(recipe.vocabulary),
        "seed": recipe.seed,
    }


def _content(file: str | None) -> str | None:
    return None if file is None else fingerprint([read_text(Path(file))])


def _prompt_rows(recipe: Recipe, run: Run) -> list[Row]:
    if recipe.prompts is not None:
        images = None if recipe.images is None else Path(recipe.images)
        prompts = read_prompts(Path(recipe.prompts), images, recipe.skip_bad)
        contents = {image: content_id(Path(image)) for image in {prompt.image for prompt in prompts}}
        kept = held_out(contents)
    else:
        photos, mix = _photos_and_mix(recipe, run)
        prompts = make_prompts(photos, mix, recipe.seed)
        contents = {photo.image: photo.id for photo in photos}
        kept_ids = held_out(contents.values())
        kept = {photo.image for photo in photos if photo.id in kept_ids}
    return [prompt.to_row() | {"held_out": prompt.image in kept, "content": contents[prompt.image]} for prompt in prompts]


def _photos_and_mix(recipe: Recipe, run: Run) -> tuple[list[Photo], Mix]:
    if recipe.images == TINY_WORLD:
        return _draw_world(recipe, run), world_mix(recipe.questions)
    mix = Mix(DESCRIBE, find_vocabulary(recipe.vocabulary), recipe.questions)
    return find_photos(Path(str(recipe.images)), recipe.count, recipe.skip_bad), mix


def _vocabulary(recipe: Recipe) -> Vocabulary:
    """The objects that answers may name."""
    return world_mix(0).vocabulary if recipe.images == TINY_WORLD else find_vocabulary(recipe.vocabulary)


def find_vocabulary(file: str | None) -> Vocabulary:
    """COCO's 80 objects, and those in the file."""
    return coco80() if file is None else coco80().extended(read_vocabulary(Path(file)))


def _draw_world(recipe: Recipe, run: Run) -> list[Photo]:
    """Scenes of the tiny world, others for every seed."""
    count = recipe.count or 0  # a recipe for the tiny world says how many
    return world_photos(run.folder, "unlabelled", count, recipe.seed * count)


def _benchmark(recipe: Recipe, job: Alignment) -> Benchmark:
    """What the model is looked at before and after: scenes whose truth is known, or else the images held out."""
    if recipe.images == TINY_WORLD:
        return world_benchmark(recipe.split, recipe.scenes)
    images = list(dict.fromkeys(prompt.image for prompt in job.held_out or job.prompts))[:PICTURES]
    name = f"{len(images)} images that were {'not ' if job.held_out else ''}trained on"
    return Benchmark(name, {image: job.image(image) for image in images})


def _measure_trained(job: Alignment, benchmark: Benchmark) -> Evaluation:
    """In after.jsonl, after-2.jsonl ..., by the adapter's rounds: one more round keeps what was measured before it."""
    rounds = len(read_adapter(job.run.adapter)[0]["round_ranks"])
    moment = "after" if rounds == 1 else f"after-{rounds}"
    return measure(job, benchmark, moment, {"adapter": weights_fingerprint(job.run.adapter)})
