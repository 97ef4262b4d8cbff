"""The check of a judge, without a training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlx_visalign.data.images import Aspect
from mlx_visalign.data.questions import descriptions
from mlx_visalign.evaluation.object_labels import Annotations, listed_labels
from mlx_visalign.inference.context_length import require_prompts_fit
from mlx_visalign.inference.policy import load
from mlx_visalign.methods.job import Job
from mlx_visalign.methods.judge import JudgeSettings, check_judge
from mlx_visalign.pipeline.dry_run import require_clip
from mlx_visalign.pipeline.prompts_stage import ask
from mlx_visalign.reporting.judge_report import JudgeReport, read_judge
from mlx_visalign.runs.image_sources import ImageSource, source_of
from mlx_visalign.runs.recipe import Recipe, require_files
from mlx_visalign.runs.run import Run
from mlx_visalign.scorers import find_scorer
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError, refuse
from mlx_visalign.utils.own_code import versioned


@dataclass(frozen=True)
class CheckSettings:
    """The part of a method's settings that a judge reads."""

    clip: str | None = None
    clip_aspect: Aspect = "pad"
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    max_tokens: int = 128
    batch: int = 8


def check_recipe(recipe: Recipe, settings: CheckSettings, run: Run, annotations: Path | None = None) -> JudgeReport:
    """Check a judge on a recipe's images.

    In a run's folder, where finished stages are not repeated. `annotations` is a list of the objects in some of the images
    (see `object_labels`).
    """
    try:
        require_files(recipe, settings)
    except UserError as error:
        refuse([f"--{fault.removeprefix('settings: ')}" for fault in error.each])
    score = None if recipe.scorer is None else find_scorer(recipe.scorer)
    if score is None and settings.clip is None:
        require_clip(recipe.model, settings.judge)
    source = source_of(recipe)
    vocabulary = source.vocabulary()
    with run:
        trained, kept = ask(recipe, run)
        prompts = descriptions([*trained, *kept])
        labels = _labels(source, annotations, [prompt.image for prompt in prompts])
        policy = load(recipe.model, cache_gb=recipe.cache_gb)
        require_prompts_fit(policy, prompts, settings.max_tokens)
        job = Job(run, policy, prompts, recipe.seed, vocabulary=vocabulary, score=score, score_name=versioned(recipe.scorer))
        check_judge(job, settings)
        found = read_judge(run, labels)
    assert found is not None  # just checked
    return found


def _labels(source: ImageSource, annotations: Path | None, images: Sequence[str]) -> Callable[[Sequence[str]], Annotations]:
    """What gives the labels of images: a list, or their world.

    Raises `UserError` for a list that is none, or that names none of the images.
    """
    if annotations is None:
        return source.labels
    truth = listed_labels(annotations, images, source.vocabulary())
    if not truth:
        raise UserError(
            f"--annotations: {annotations} has labels of none of the {len(images):,} images. Its names must be those of the "
            'files: {"cat.jpg": ["cat", "sofa"], "street/1.jpg": ["car"]}.'
        )
    return lambda asked: truth


def check_beside(job: Job, images: int) -> None:
    """Check the built-in CLIP on a run's first images.

    The run's method may need no judge; its report shows the result.
    """
    judge = JudgeSettings(debias_images=images, check_images=images, samples=4)
    settings = CheckSettings(judge=judge, max_tokens=64, batch=images)
    known = job.run.judge.exists()
    found = check_judge(replace(job, prompts=descriptions(job.prompts)[:images]), settings)
    if not known:
        say(f"The built-in CLIP as a judge, which CSR and FiSAO check before they train: {found.in_words}")
