"""Dry run: work, memory and time estimated without a model."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory

from mlx_visalign.data.records import Prompt
from mlx_visalign.evaluation.runner import Protocol
from mlx_visalign.methods.job import watching
from mlx_visalign.methods.judge import JudgeSettings
from mlx_visalign.models.hub import find_config
from mlx_visalign.pipeline.best_of_n import SAMPLES
from mlx_visalign.pipeline.controls import controls_of
from mlx_visalign.pipeline.evaluations import READ_TOGETHER
from mlx_visalign.pipeline.prompts_stage import ask
from mlx_visalign.preflight.estimate import Forecast, forecast, in_full, training_needs
from mlx_visalign.preflight.workload import Answering
from mlx_visalign.runs.image_sources import source_of
from mlx_visalign.runs.recipe import Plan
from mlx_visalign.runs.run import Run
from mlx_visalign.runs.stage import Row
from mlx_visalign.scorers import Reward, Score, find_reward, find_scorer
from mlx_visalign.scorers.clip import require_named_clip
from mlx_visalign.training.dpo import PreferenceSettings
from mlx_visalign.training.training_length import short_training_warning
from mlx_visalign.utils.errors import UserError


def protocol_of(plan: Plan) -> Protocol:
    """The protocol of evaluations before and after training.

    Answers may be as long as those that the model is trained on.
    """
    return Protocol(max_tokens=plan.settings.max_tokens)


def own_functions(plan: Plan, score: Score | None = None, reward: Reward | None = None) -> tuple[Score | None, Reward | None]:
    """The user's scorer and reward, from the recipe unless given.

    Raises `UserError` if the method needs a reward, or a CLIP, and none is named. Called before the images are read, not
    hours later.
    """
    recipe = plan.recipe
    if score is None and recipe.scorer is not None:
        score = find_scorer(recipe.scorer)
    if reward is None and recipe.reward_function is not None:
        reward = find_reward(recipe.reward_function)
    if reward is None and getattr(plan.settings, "NEEDS_REWARD", False):
        raise UserError(
            f"{recipe.method} needs a reward of your own: --reward-file FILE.py, with a function "
            "reward(images, prompts, answers) in it that returns a number for every answer."
        )
    if score is None and getattr(plan.settings, "clip", "") is None:
        require_clip(recipe.model, getattr(plan.settings, "judge", None))
    return score, reward


def require_clip(model: str, judge: JudgeSettings | None) -> None:
    """Raise `UserError` if this model's images need a CLIP.

    Called where none is named. A judge may do without.
    """
    if model != "tiny" and (judge is None or judge.reads_clip):
        require_named_clip(find_config(model))


def upper_bounds(plan: Plan) -> Row:
    """Upper bounds on a run's work, memory and time.

    How many answers make a pair is known only once the model has answered.
    """
    own_functions(plan)
    with TemporaryDirectory() as folder, Run(folder) as run:
        prompts, kept = ask(plan.recipe, run, draw=False)
    too_little = too_little_training(plan, prompts)
    return {
        **({"too_little": too_little} if too_little else {}),
        "images": len({prompt.image for prompt in prompts}),
        "images_held_out": len({prompt.image for prompt in kept}),
        "prompts": Counter(prompt.kind or "other" for prompt in prompts),
        **_work(plan, prompts),
        **(_controls(plan) if plan.recipe.controls else {}),
        **in_full(forecast_of(plan, prompts, kept)),
    }


def too_little_training(plan: Plan, prompts: Sequence[Prompt]) -> str | None:
    """Why the run will hardly change its model, or None.

    Assumes that every prompt makes a pair, so None does not mean that the training is long enough.
    """
    train, count = plan.settings.train, len(plan.settings.prompts_used(prompts))
    return short_training_warning(train.loop(count), count if isinstance(train, PreferenceSettings) else None, at_most=True)


def _work(plan: Plan, prompts: Sequence[Prompt]) -> Row:
    """Upper bounds on each stage's prompts and tokens, and on updates."""
    workload, settings = plan.settings.workload(prompts), plan.settings
    return {
        **({"rounds": workload.rounds} if workload.rounds > 1 else {}),
        "prompts_answered": {stage.title: stage.total for stage in workload.stages},
        "answer_tokens_at_most": sum(stage.sampled for stage in workload.stages),
        "updates_at_most": workload.trained // (settings.train.batch_size * settings.train.grad_accumulation_steps),
    }


def _controls(plan: Plan) -> Row:
    """The control runs, whose time is not estimated."""
    names = controls_of(plan.settings)
    trainings = len(names) - names.count("best")
    work = f"{trainings} more trainings and {SAMPLES * plan.recipe.eval_images:,} more answers, not in these estimates"
    return {"controls": f"{', '.join(names)}: {work}"}


def forecast_of(plan: Plan, prompts: Sequence[Prompt], kept: Sequence[Prompt]) -> Forecast:
    """Memory and time of all stages and both evaluations."""
    workload = plan.settings.workload(prompts)
    measured = 2 * source_of(plan.recipe).benchmark_size(prompts, kept)  # before and after
    longest = protocol_of(plan).max_tokens
    measuring = Answering("before and after", measured, measured * longest, READ_TOGETHER, longest, adapters=1)
    cached = {"images": len({prompt.image for prompt in prompts}), "cache_gb": plan.recipe.cache_gb}
    answer = max(stage.tokens for stage in workload.stages)
    needs = {**training_needs(plan.settings.train), **cached, "answer": answer}
    guarded = isinstance(plan.settings.train, PreferenceSettings)
    watched = watching(plan.settings, prompts, workload.rounds) if guarded else ()
    return forecast(plan.recipe.model, needs, replace(workload, stages=(*workload.stages, *watched, measuring)))
