"""SeVa: self-supervised visual preference alignment (Zhu et al., arXiv 2404.10501).

Answer every question twice, greedily: about the clean image (chosen) and about a distorted one (rejected). Drop equal
answers. Train DPO on the clean image. No scorer, no labels.

Departures from the paper's code (github Kevinz-code/SeVa), each with its reason:
- one template everywhere: the code accidentally generates with "human" and trains with "user" in the system sentence.
- the projector stays frozen: the code intends to freeze it (`--mm_projector_lr 0`) but trains it.
- answers are compared after clean-up, and newlines are kept: the code deletes them, gluing list items together.
- answers cut off at the length limit are dropped: the code appends an end token the model never gave.
- noise is seeded by the run's seed and the prompt, so every pair is reproducible; the code's noise is unseeded.
- yes/no pairs are balanced, as many that prefer yes as prefer no: distortion mostly turns a "no" into a "yes", so
  unbalanced pairs would also teach the model to deny what is there.
- a "yes" is preferred only where the model is sure of it (`min_yes_margin`): few random questions are about what is there, so a
  doubtful "yes" that distortion turns into a "no" is more often wrong than right.
- descriptions are balanced by length (`max_length_gap`): the sums of DPO favour length, and a distorted image makes answers
  longer or shorter.
- the presets `laptop` and `tiny` add the chosen answers' own likelihood to the loss (`rpo_alpha`), without which recall falls.
- images are rotated for descriptions and cropped for yes/no questions; the paper adds noise, which does harm in the tiny world.
- an epoch is one pass over the pairs; the code lists every pair twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_visalign.data.augment import View, parse_view
from mlx_visalign.data.records import Pair, Prompt, Response
from mlx_visalign.evaluation.pope import parse_answer
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.methods.job import SCORED_TOGETHER, Job
from mlx_visalign.methods.preference_rounds import PairSettings
from mlx_visalign.methods.seva.views import AUTO, answers_about, choosing, find_level, see
from mlx_visalign.models.lora import adapter_at
from mlx_visalign.preflight.workload import Answering, Workload, further_scoring
from mlx_visalign.reporting.before_after import changed_words
from mlx_visalign.reporting.contact_sheet import Caption, Cell, Span, contact_sheet, save_sheet
from mlx_visalign.reporting.html import gallery, join, tag
from mlx_visalign.training.pair_filters import balance_lengths
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import write_atomically
from mlx_visalign.utils.formatting import counted
from mlx_visalign.utils.own_code import versioned
from mlx_visalign.utils.schema import require
from mlx_visalign.utils.seeding import key_for, number_for

Two = tuple[Response, Response]  # a clean and a distorted answer to one prompt
NOISE_LEVELS = (200, 400, 600, 800, 999)  # diffusion steps shown in the picture
PAIR_SETTINGS = ("max_length_gap", "min_yes_margin")
ADVICE = (
    "If answers are the same, distort more (--set view=moco). If answers are cut off, raise --max-tokens. Or use more images."
)


@dataclass(frozen=True)
class Settings(PairSettings):
    """SeVa's settings: those of every pair method (`preference_rounds.PairSettings`), and

    view                how images are distorted for the rejected answer: diffusion-STEP, a name from `augment`, one's own
                        as FILE.py:FUNCTION, or diffusion-auto: the most noise at which answers keep their length (`views`)
    exists_view         the same for yes/no questions; none: as `view`
    exists_max_tokens   `max_tokens` of yes/no questions; longer answers are dropped
    max_length_gap      descriptions: drop the pairs that differ most in length until the mean difference, in tokens, is at
                        most this (0 or more); none: keep all, as in the paper
    min_yes_margin      yes/no questions: a clean "yes" is preferred only if its log-probability exceeds the distorted
                        "no"'s by at least this (0 or more); none: no such limit, as in the paper

    The defaults are the form that is measured in the tiny world; the preset `paper` has the paper's.
    """

    view: str = "rotation"
    exists_view: str | None = "crop"
    exists_max_tokens: int = 8
    max_length_gap: float | None = 2.0
    min_yes_margin: float | None = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for label in (self.view, self.exists_view):
            if label not in (None, AUTO):
                parse_view(label)
        require(
            self,
            exists_max_tokens=(self.exists_max_tokens >= 1, "1 or more"),
            max_length_gap=(self.max_length_gap is None or self.max_length_gap >= 0, "0 or more, or null"),
            min_yes_margin=(self.min_yes_margin is None or self.min_yes_margin >= 0, "0 or more, or null"),
        )

    @property
    def finds_its_view(self) -> bool:
        """Whether the run itself chooses how much noise to add."""
        return AUTO in (self.view, self.exists_view)

    @property
    def own_views(self) -> list[str]:
        """The user's own views, each with its code's version."""
        return [versioned(label) for label in (self.view, self.exists_view) if label is not None and ":" in label]

    def view_of(self, kind: str) -> View:
        return parse_view(self.exists_view or self.view if kind == "exists" else self.view)

    def sampling_of(self, kind: str) -> Sampling:
        return Sampling(self.exists_max_tokens if kind == "exists" else self.max_tokens)

    def workload(self, prompts: Sequence[Prompt]) -> Workload:
        """Sampling, scoring both answers on the clean image, and DPO."""
        sampled = 2 * sum(self.sampling_of(prompt.kind).max_tokens for prompt in prompts)
        longest = max(self.max_tokens, self.exists_max_tokens)
        answering = Answering("answering", len(prompts), sampled, self.batch, longest, read=2, prefills=2)
        scoring = further_scoring(self.train.loss, len(prompts), SCORED_TOGETHER, longest)
        first = (choosing(prompts, self.max_tokens, self.batch),) if self.finds_its_view else ()
        return Workload((*first, answering, *scoring), self.train.prompts_trained(len(prompts)))


def depends_on(job: Job, settings: Settings) -> dict[str, Any]:
    """The code of own views, which answers depend on."""
    return {"own_views": settings.own_views} if settings.own_views else {}


def resolve(job: Job, settings: Settings) -> Settings:
    """The settings, with a level of noise for `diffusion-auto`."""
    if not settings.finds_its_view:
        return settings
    level = find_level(job, settings.max_tokens, settings.batch)
    return replace(
        settings,
        view=level if settings.view == AUTO else settings.view,
        exists_view=level if settings.exists_view == AUTO else settings.exists_view,
    )


def scored(settings: Settings) -> bool:
    """Always: responses hold their log-probabilities."""
    return True


def sample(job: Job, settings: Settings, prompts: Sequence[Prompt], number: int) -> list[Response]:
    """Two responses per prompt, the clean one first.

    Both are scored on the clean image while its prefix is still cached.
    """
    responses: list[Response] = []
    for kind, group in groupby(prompts, key=lambda prompt: prompt.kind):
        responses += _answer_kind(job, settings, kind, list(group))
    return responses


def _answer_kind(job: Job, settings: Settings, kind: str, prompts: list[Prompt]) -> list[Response]:
    policy, view, sampling = job.policy, settings.view_of(kind), settings.sampling_of(kind)
    rejected = answers_about(job, prompts, view, sampling)
    clean = job.prefill(prompts)
    chosen = policy.generate(clean, sampling)
    texts = [[policy.response_ids(answer.text) for answer in pair] for pair in zip(chosen, rejected, strict=True)]
    logps = np.array(policy.score(clean, texts))
    responses = []
    for index, prompt in enumerate(prompts):
        for side, (label, answers) in enumerate((("clean", chosen), (view.label, rejected))):
            answer = answers[index]
            responses.append(
                Response(
                    **vars(prompt),
                    view=label,
                    text=answer.text,
                    finished=answer.finished,
                    tokens=len(answer.ids),
                    reference_logp=float(logps[index, side]),
                )
            )
    return responses


def pairs(responses: Sequence[Response], settings: Settings, seed: int) -> list[Pair]:
    """(clean, distorted) answers as (chosen, rejected).

    Both must be finished and different; yes/no answers must have changed, and are balanced.
    """
    twos = [(clean, distorted) for clean, distorted in in_twos(responses) if differ(clean, distorted)]
    exists = [two for two in twos if two[0].kind == "exists"]
    exists = balance([two for two in exists if settings.min_yes_margin is None or _is_sure(two, settings.min_yes_margin)], seed)
    others = [two for two in twos if two[0].kind != "exists"]
    gaps = [clean.tokens - distorted.tokens for clean, distorted in others]
    others = balance_lengths(others, gaps, settings.max_length_gap)
    return [
        Pair(
            id=clean.id,
            images=(clean.image,),
            prompt=clean.prompt,
            chosen=clean.text,
            rejected=distorted.text,
            reference_logps=_both(clean.reference_logp, distorted.reference_logp),
        )
        for clean, distorted in others + exists
    ]


def summary(responses: Sequence[Response], made: Sequence[Pair]) -> str:
    """How many prompts made a pair, and why others not."""
    twos = in_twos(responses)
    cut = sum(not (clean.finished and distorted.finished) for clean, distorted in twos)
    different = sum(differ(clean, distorted) for clean, distorted in twos)
    return (
        f"{counted(len(twos), 'prompt')} gave {counted(len(made), 'pair')} (both answers the same: "
        f"{len(twos) - cut - different}, one cut off: {cut}, left out for balance: {different - len(made)})."
    )


def in_twos(responses: Sequence[Response]) -> list[Two]:
    """The clean and the distorted answer to each prompt.

    Raises `UserError` where one of the two is missing.
    """
    twos = list(zip(responses[::2], responses[1::2], strict=False))
    for clean, distorted in twos:
        if clean.id != distorted.id or clean.view != "clean":
            raise UserError(f"responses: expected a clean and a distorted answer to {clean.id}, got one to {distorted.id}.")
    if len(responses) % 2:
        raise UserError(f"responses: the last prompt, {responses[-1].id}, has one answer instead of two.")
    return twos


def _both(chosen: float | None, rejected: float | None) -> dict[str, float] | None:
    return None if chosen is None or rejected is None else {"chosen": chosen, "rejected": rejected}


def differ(clean: Response, distorted: Response) -> bool:
    """Whether the two answers make a pair.

    A yes/no answer must have changed between yes and no, not only its wording.
    """
    if not (clean.finished and distorted.finished) or clean.text == distorted.text:
        return False
    return clean.kind != "exists" or parse_answer(clean.text) != parse_answer(distorted.text)


def _is_sure(two: Two, margin: float) -> bool:
    """Whether a clean "yes" beats the distorted "no" by `margin` nats, both on the clean image; a clean "no" always passes."""
    clean, distorted = (response.reference_logp for response in two)
    if clean is None or distorted is None:
        raise UserError(f"responses: min_yes_margin needs a reference_logp, and the answers to {two[0].id} have none.")
    return parse_answer(two[0].text) == "no" or clean - distorted >= margin


def balance(twos: list[Two], seed: int) -> list[Two]:
    """Drop pairs at random until both directions are equally frequent.

    The directions: a clean "yes" that became "no", and a clean "no" that became "yes".
    """
    sides = [[i for i, (clean, _) in enumerate(twos) if parse_answer(clean.text) == side] for side in ("yes", "no")]
    fewer = min(map(len, sides))
    rng = np.random.default_rng(number_for(seed, "balance"))
    kept = [i for side in sides for i in rng.permutation(side)[:fewer].tolist()]
    return [twos[i] for i in sorted(kept)]


def picture(job: Job, settings: Settings) -> None:
    """Write `plots/seva.png` and `.html`.

    One image, clean and increasingly distorted, with the base model's answer to each.
    """
    settings = resolve(job, settings)
    described = [prompt for prompt in job.prompts if prompt.kind == "describe"]
    if not described:
        return
    prompt = described[0]
    view, key = settings.view_of("describe"), key_for(job.seed, prompt.id, "picture")
    if view.step is None:
        views = [("clean", parse_view("clean"), key)]
        views += [(f"{view.label} {i + 1}", view, draw) for i, draw in enumerate(mx.random.split(key, 5))]
    else:
        views = [(label, parse_view(label), key) for label in ("clean", *(f"diffusion-{step}" for step in NOISE_LEVELS))]
    pixels = [see(job.policy, job.image(prompt.image), view, key) for _, view, key in views]
    with adapter_at(job.policy.model, 0):
        prefix = job.policy.prefill(job.policy.features(pixels), [job.policy.prompt_ids(prompt.prompt)] * len(views))
        answers = job.policy.generate(prefix, settings.sampling_of("describe"))
    cells = [
        Cell(job.policy.preprocessing.shown(image), (Caption(label, changed_words(answer.text, answers[0].text)),))
        for (label, _, _), image, answer in zip(views, pixels, answers, strict=True)
    ]
    legend = [
        Caption("asked:", (Span(prompt.prompt),)),
        Caption("SeVa", (Span("prefers the answer about the clean image to one about a distorted image."),)),
        Caption("", (Span("Blue", "changed"), Span(": words that are not in the answer about the clean image.", "quiet"))),
    ]
    title = "The base model's answers at increasing distortion"
    save_sheet(contact_sheet(cells, 3, title, legend), job.run.plots / "seva.png")
    write_atomically(job.run.plots / "seva.html", join(tag("h3", title), gallery(cells, legend)))
