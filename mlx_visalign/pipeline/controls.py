"""Control runs (ablations), to compare a method with.

If the method works as claimed, these help less, or not at all:

random   the method's pairs, with the preferred side chosen by a coin flip
shorter  the method's pairs, with the shorter answer preferred; equally long ones are left out
blind    trained on the same pairs, or on the same answers with the same rewards, but with a blank image in place of every
         image: gains do not come from seeing. Sampling, scoring and evaluation use the real images
best     no training: the method's own reward picks among several answers of the base (`best_of_n`)
"""

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mlx_visalign.data.records import Pair, read_jsonl
from mlx_visalign.evaluation.runner import Evaluation
from mlx_visalign.methods.job import Job
from mlx_visalign.methods.preference_rounds import Round, train_in_rounds
from mlx_visalign.models.adapter_files import fingerprint
from mlx_visalign.pipeline.evaluations import measure, measure_best
from mlx_visalign.runs.run import Run
from mlx_visalign.runs.run_folder import RunFolder, stage_name
from mlx_visalign.training.dpo import PreferenceSettings
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.seeding import number_for

Control = Literal["random", "shorter", "blind", "best"]
CONTROLS: tuple[Control, ...] = get_args(Control)
BLANK = "blank.png"
UNGUARDED = {"max_kl": 1e9, "min_share": 0.0}  # a control is trained to its end, however far it moves from the base


def controls_of(settings: Any) -> tuple[Control, ...]:
    """The controls that apply to a method with these settings.

    Swapping sides needs pairs.
    """
    return CONTROLS if isinstance(settings.train, PreferenceSettings) else ("blind", "best")


def measure_control(
    control: Control, made: Job, folder: Path, method: Any, settings: Any, base: Evaluation, moment: str
) -> Evaluation:
    """Train and evaluate a control of the finished run `made`.

    `made.policy` is freshly loaded from the base; the control is evaluated as `base` was. Everything is written to
    `folder`, is done once, and resumes after a stop; the answers are in MOMENT.jsonl.
    """
    job = own_job(made, folder)
    with closing(job.run):
        if control == "best":  # ranks with `made`, since scorers may use the run's results, such as a calibration
            return measure_best(job, method.ranking(made, settings), base, moment, {"settings": asdict(settings)})
        train_control(control, job, made.run.folder, method, settings)
        return measure(job, base.benchmark, moment, {"adapter": fingerprint(job.run.adapter)}, base.protocol)


def own_job(job: Job, folder: Path) -> Job:
    """A control's job, in a folder of its own.

    Same seed, prompts and policy. Image paths are relative, so that the control may move with its run.
    """
    prompts = [replace(prompt, image=os.path.relpath(job.image(prompt.image), folder)) for prompt in job.prompts]
    run = Run(folder)
    run.after_stage = job.run.after_stage
    return replace(job, run=run, prompts=prompts, held_out=[], after_round=None)


def train_control(control: Control, job: Job, made: Path, method: Any, settings: Any) -> None:
    """Train `job.policy` like the run `made`, but as a control.

    The policy is freshly loaded from its base; `made` is the folder of the method's run.
    """
    unguarded = {name: value for name, value in UNGUARDED.items() if hasattr(settings.train, name)}
    settings = replace(settings, train=replace(settings.train, **unguarded))
    if control == "blind":
        job.draw_blank(job.image(BLANK))
    if isinstance(settings.train, PreferenceSettings):
        _train_on_pairs(control, job, RunFolder(made), settings)
    elif control == "blind":
        method.train(replace(job, blank=job.image(BLANK)), settings)
    else:
        raise UserError(f"The control {control!r} needs pairs, but this method makes none.")


def controlled(control: Control, pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The pairs, changed as the control requires.

    Blind pairs lose their reference, which was computed with the images.
    """
    if control == "blind":
        return [replace(pair, images=(BLANK,), reference_logps=None) for pair in pairs]
    if control == "random":
        coins = np.random.default_rng(number_for(seed, "control")).random(len(pairs)) < 0.5
        return [swapped(pair) if coin else pair for pair, coin in zip(pairs, coins, strict=True)]
    lengths = [(len(pair.chosen.split()), len(pair.rejected.split())) for pair in pairs]  # in words
    return [swapped(p) if c > r else p for p, (c, r) in zip(pairs, lengths, strict=True) if c != r]


def swapped(pair: Pair) -> Pair:
    """The pair with its sides swapped.

    Only the reference on the clean image is kept.
    """
    logps = pair.reference_logps
    turned = None if logps is None else {"chosen": logps["rejected"], "rejected": logps["chosen"]}
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen, reference_logps=turned)


def _train_on_pairs(control: Control, job: Job, made: RunFolder, settings: Any) -> None:
    """Train the method's rounds on the control's pairs. In later rounds the control itself is the reference."""
    loss, files = settings.train.loss, made.pairs()

    def pairs_of(one: Round) -> list[Pair]:
        pairs = [_from(job.run.folder, made.folder, pair) for pair in read_jsonl(files[one.number - 1], Pair)]
        pairs = controlled(control, pairs, job.seed)
        if one.number > 1 or control == "blind" or loss.needs_more:
            pairs = job.scored(pairs, stage_name("pairs", one.number), loss, one.seed, control=control)
        return [job.located(pair) for pair in pairs]

    train_in_rounds(job, settings, pairs_of, f"control: {control}")


def _from(folder: Path, made: Path, pair: Pair) -> Pair:
    return replace(pair, images=tuple(os.path.relpath(made / image, folder) for image in pair.images))
