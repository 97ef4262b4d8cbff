"""Controls: trainings that should not help, or help less, if a method does what it says, and what goes without one.

random   the method's pairs, the preferred side drawn by a coin
shorter  the method's pairs, the shorter answer preferred; equally long ones are left out
blind    the same pairs, or the same answers with the same rewards, learned from as if every image were blank: what is
         gained so needs no looking. It is sampled, judged and evaluated with the images as ever
best     no training: of several answers of the base, the one that the method's own judge likes best (`best_of_n`)
"""

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

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
from mlx_visalign.utils.files import replacing
from mlx_visalign.utils.seeding import number_for

Control = Literal["random", "shorter", "blind", "best"]
CONTROLS: tuple[Control, ...] = get_args(Control)
BLANK = "blank.png"
UNGUARDED = {"max_kl": 1e9, "min_share": 0.0}  # a control is measured however far it strays from the base


def controls_of(settings: Any) -> tuple[Control, ...]:
    """The controls of a method with these settings: without pairs there is no side to swap."""
    return CONTROLS if isinstance(settings.train, PreferenceSettings) else ("blind", "best")


def measure_control(
    control: Control, made: Job, folder: Path, method: Any, settings: Any, base: Evaluation, moment: str
) -> Evaluation:
    """What a control of the finished run `made` comes to, its policy fresh from the base: asked what `base` was asked.

    All of it goes to `folder`, is done once, and gone on with after any stop; the answers are in MOMENT.jsonl.
    """
    job = own_job(made, folder)
    with closing(job.run):
        if control == "best":  # what judges may need what the run found out
            return measure_best(job, method.ranking(made, settings), base, moment, {"settings": asdict(settings)})
        train_control(control, job, made.run.folder, method, settings)
        return measure(job, base.benchmark, moment, {"adapter": fingerprint(job.run.adapter)}, base.protocol)


def own_job(job: Job, folder: Path) -> Job:
    """The same seed, prompts and policy for a control, in a folder of its own that may move with the run's."""
    prompts = [replace(prompt, image=os.path.relpath(job.image(prompt.image), folder)) for prompt in job.prompts]
    run = Run(folder)
    run.after_stage = job.run.after_stage
    return replace(job, run=run, prompts=prompts, held_out=[], after_round=None)


def train_control(control: Control, job: Job, made: Path, method: Any, settings: Any) -> None:
    """Train `job.policy`, fresh from its base, as the method's run in the folder `made` was, but for the control."""
    if control == "blind":
        _draw_blank(job)
    if isinstance(settings.train, PreferenceSettings):
        _train_on_pairs(control, job, RunFolder(made), settings)
    elif control == "blind":
        unguarded = replace(settings, train=replace(settings.train, **UNGUARDED))
        method.train(replace(job, blank=job.image(BLANK)), unguarded)
    else:
        raise UserError(f"The control {control!r} needs pairs, and this method makes none.")


def controlled(control: Control, pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The pairs as the control has them. Blind ones have lost their reference, which saw the images."""
    if control == "blind":
        return [replace(pair, images=(BLANK,), reference_logps=None) for pair in pairs]
    if control == "random":
        coins = np.random.default_rng(number_for(seed, "control")).random(len(pairs)) < 0.5
        return [swapped(pair) if coin else pair for pair, coin in zip(pairs, coins, strict=True)]
    words = [(len(pair.chosen.split()), len(pair.rejected.split())) for pair in pairs]
    return [swapped(p) if c > r else p for p, (c, r) in zip(pairs, words, strict=True) if c != r]


def swapped(pair: Pair) -> Pair:
    """The pair the other way round, with its reference about the clean image."""
    logps = pair.reference_logps
    turned = None if logps is None else {"chosen": logps["rejected"], "rejected": logps["chosen"]}
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen, reference_logps=turned)


def _train_on_pairs(control: Control, job: Job, made: RunFolder, settings: Any) -> None:
    """The method's own rounds on its pairs as the control has them. The reference of a later one is the control itself."""
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


def _draw_blank(job: Job) -> None:
    """An image of the mean colour, which is 0 to the tower."""
    preprocessing = job.policy.preprocessing
    with replacing(job.image(BLANK), durable=False) as file:
        Image.new("RGB", (preprocessing.size, preprocessing.size), preprocessing.background).save(file, "PNG")
