"""Distorted images, and how much noise `diffusion-auto` is.

Where noise makes answers longer or shorter, DPO learns length instead of what the image shows. How much noise that takes
differs between models, so a run finds out: it describes some of its images at every level of a ladder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import fmean

import mlx.core as mx
import numpy as np
from jaxtyping import Float
from PIL import Image

from mlx_visalign.data.augment import View, parse_view
from mlx_visalign.data.images import open_image
from mlx_visalign.data.questions import spread_descriptions
from mlx_visalign.data.records import Prompt, Response
from mlx_visalign.inference.policy import Answer, Policy
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.methods.job import Job
from mlx_visalign.preflight.workload import Answering
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.seeding import key_for

AUTO = "diffusion-auto"
LADDER = tuple(f"diffusion-{step}" for step in range(100, 1000, 100))
IMAGES = 20
NEAR, CUT = 0.1, 0.1  # lengths are kept if they change by at most this share, and at most this many more answers are cut off


def answers_about(job: Job, prompts: Sequence[Prompt], view: View, sampling: Sampling) -> list[Answer]:
    """The model's answers about distorted images.

    What is random in a view depends on the run's seed, the prompt and the view alone.
    """
    policy = job.policy
    seen = [see(policy, job.image(one.image), view, key_for(job.seed, one.id, view.label)) for one in prompts]
    return policy.generate(policy.prefill(policy.features(seen), [policy.prompt_ids(one.prompt) for one in prompts]), sampling)


def see(policy: Policy, path: Path, view: View, key: mx.array) -> Float[mx.array, "h w 3"]:
    """A distorted image's pixels, as the vision tower gets them.

    Distort, pad or crop, resize, normalise, add noise.
    """
    image = mx.array(np.asarray(open_image(path)))
    distorted = Image.fromarray(np.array(view.of_image(image, key, policy.preprocessing.size)))
    return view.of_pixels(policy.pixels(distorted), key)


@dataclass(frozen=True)
class Level:
    """What a level of noise does to answers.

    ratio    tokens of all answers about noised images, as a share of those about the clean ones
    cut      share of answers cut off beyond that of the clean ones, 0 or more
    changed  share of answers that are not those about the clean images
    """

    label: str
    ratio: float
    cut: float
    changed: float

    @property
    def keeps_length(self) -> bool:
        return abs(self.ratio - 1) <= NEAR and self.cut <= CUT

    def __str__(self) -> str:
        return f"{self.label} ({self.ratio:.2f} times as long, {self.cut:.0%} more cut off, {self.changed:.0%} changed)"


def find_level(job: Job, max_tokens: int, batch: int) -> str:
    """The view that `diffusion-auto` stands for.

    The answers are a stage of the run, so a resumed run keeps its choice.
    """
    asked = spread_descriptions(job.prompts, IMAGES)
    if not asked:
        raise UserError(
            f"{AUTO} looks at how long descriptions of noised images are, and no prompt asks for a description. Name a view: "
            "--set view=diffusion-500."
        )
    rows = job.run.records(
        Response,
        "noise_levels",
        asked,
        lambda some: [row.to_row() for row in _climb(job, some, Sampling(max_tokens))],
        settings=job.about() | {"seed": job.seed, "max_tokens": max_tokens, "ladder": LADDER},
        batch=batch,
        title="choosing the noise",
    )
    level, sentence = choose([level_of(rows, label) for label in LADDER])
    say(sentence)
    return level.label


def choosing(prompts: Sequence[Prompt], max_tokens: int, batch: int) -> Answering:
    """The work of `find_level`."""
    count, views = len(spread_descriptions(prompts, IMAGES)), 1 + len(LADDER)
    return Answering("choosing the noise", count, count * views * max_tokens, batch, max_tokens, prefills=views)


def _climb(job: Job, prompts: Sequence[Prompt], sampling: Sampling) -> list[Response]:
    """Answers to the prompts about the clean image and at every level."""
    answers = {"clean": job.policy.generate(job.prefill(prompts), sampling)}
    answers |= {label: answers_about(job, prompts, parse_view(label), sampling) for label in LADDER}
    return [
        Response(**vars(prompt), view=label, text=one.text, finished=one.finished, tokens=len(one.ids))
        for label, some in answers.items()
        for prompt, one in zip(prompts, some, strict=True)
    ]


def level_of(rows: Sequence[Response], label: str) -> Level:
    """Compare the answers at a level with the clean ones."""
    clean = {row.id: row for row in rows if row.view == "clean"}
    noised = [row for row in rows if row.view == label]
    before = [clean[row.id] for row in noised]
    ratio = sum(row.tokens for row in noised) / sum(row.tokens for row in before)
    cut = fmean(not row.finished for row in noised) - fmean(not row.finished for row in before)
    return Level(label, ratio, max(0.0, cut), fmean(row.text != clean[row.id].text for row in noised))


def choose(levels: Sequence[Level]) -> tuple[Level, str]:
    """The level to take, and a sentence about it.

    The strongest before the first that changes the length: further up a mean near the clean one's is chance, for long
    answers and short ones cancel out. If there is none, the one whose length is nearest.
    """
    kept = list(takewhile(lambda level: level.keeps_length, levels))
    if not kept:
        nearest = min(levels, key=lambda level: (level.cut > CUT, abs(level.ratio - 1)))
        return nearest, (
            f"warning: {AUTO}: at no level of noise do answers keep their length; the nearest is {nearest}. Other views may "
            "suit this model better, such as --set view=crop."
        )
    beyond = f"; {levels[len(kept)]} is too much" if len(kept) < len(levels) else ""
    return kept[-1], f"{AUTO}: answers keep their length up to {kept[-1]}{beyond}."
