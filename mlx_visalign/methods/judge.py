"""The judge of methods that reward what fits the image.

A judge scores objects and sentences. Its parts, of which `combined` takes the first and the third:

    clip         CLIP's score of a phrase with the object, minus the phrase's mean over other images (word debiasing)
    self_check   the untrained model's own yes or no to "is there a ...?"
    consistency  the share of the untrained model's sampled answers that name the object

A CLIP is a weak judge of photos. Sampled answers err in other ways, so the two together are better than either. A scorer of
the user's own takes CLIP's place.

Before any training the judge is checked, without labels, on what the model says about some of the images (`check`).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlx_visalign.data.images import image_digest
from mlx_visalign.data.questions import descriptions, one_an_image
from mlx_visalign.data.records import Prompt, Record
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.methods.job import Job
from mlx_visalign.preflight.workload import Answering
from mlx_visalign.runs.stage import fingerprint
from mlx_visalign.scorers import Score
from mlx_visalign.scorers.clip import CLIPScorer, clip_scorer
from mlx_visalign.scorers.consistency import Consistency, Shares, shares_of
from mlx_visalign.scorers.objects import Combined, Part, PhraseScorer, SentenceScorer
from mlx_visalign.scorers.self_check import SelfCheck
from mlx_visalign.scorers.trust import COMBINED, JudgedImage, JudgedObject, Trust, require_scores, scale_of, trust, weights_of
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import write_atomically
from mlx_visalign.utils.schema import require
from mlx_visalign.utils.seeding import key_for

Kind = Literal["combined", "clip", "nouns", "consistency", "self_check"]
PARTS: dict[Kind, tuple[str, ...]] = {
    "combined": COMBINED,
    "clip": ("clip",),
    "nouns": ("clip",),
    "consistency": ("consistency",),
    "self_check": ("self_check",),
}
SENTENCE = re.compile(r"[^\s.!?][^.!?]*[.!?]*")


@dataclass(frozen=True)
class JudgeSettings:
    """How objects and sentences are judged.

    kind           clip: CLIP alone, whole sentences by the sentence; nouns: the mean of a sentence's score and that of the
                   objects it names; consistency, self_check: that part alone; combined: clip and consistency, by object
    phrase         the text that CLIP gets for an object; {} is its name
    debias_images  images over which a phrase's mean score is subtracted; 0: none. The first ones of the run
    weights        of the parts of combined: equal, or found from their agreement (scorers/trust)
    samples        consistency: sampled answers to every image, at temperature 1
    check_images   images on which the judge is checked, and its parts are put on one scale
    gate           what happens if the check fails: the run stops, or only warns
    """

    kind: Kind = "combined"
    phrase: str = "a {}"
    debias_images: int = 256
    weights: Literal["equal", "agreement"] = "equal"
    samples: int = 8
    check_images: int = 200
    gate: Literal["stop", "warn"] = "stop"

    def __post_init__(self) -> None:
        if "{}" not in self.phrase:
            raise UserError(f"phrase is '{self.phrase}'; it must contain {{}} in place of the object's name.")
        require(
            self,
            debias_images=(self.debias_images >= 0, "0 or more"),
            samples=(self.samples >= 2, "2 or more"),
            check_images=(self.check_images >= 1, "1 or more"),
        )

    @property
    def reads_clip(self) -> bool:
        return "clip" in PARTS[self.kind]

    def workload(self, prompts: int, batch: int, max_tokens: int) -> tuple[Answering, ...]:
        """The stages that sample answers, and check the judge."""
        sampled = prompts if "consistency" in PARTS[self.kind] else min(prompts, self.check_images)
        checked = min(prompts, self.check_images)
        drawing = Answering(
            "sampling for consistency",
            sampled,
            sampled * self.samples * max_tokens,
            batch,
            max_tokens,
            self.samples,
            drawn=True,
        )
        return drawing, Answering("checking the judge", checked, checked * max_tokens, batch, max_tokens, prefills=4)


@dataclass(frozen=True)
class Sampled(Record):
    """The untrained model's sampled answers about an image."""

    id: str
    image: str
    prompt: str
    answers: tuple[str, ...]
    tokens: int


@dataclass(frozen=True)
class Judge:
    """Scores objects, and sentences by the objects they name.

    name       what its scores depend on besides the model and the seed
    objects    a score for an image and an object's name
    sentences  a score for an image and a sentence
    typical    images and sentences of the model's sampled answers, to see the scores' spread
    checked    the model's greedy answers on which it was checked
    trust      what the check found
    """

    name: dict[str, Any]
    objects: Score
    sentences: Score
    typical: tuple[Sequence[Path], Sequence[str]]
    checked: Sequence[JudgedImage]
    trust: Trust

    @cached_property
    def spread(self) -> tuple[float, float]:
        """Median, and half the standard deviation, of typical sentences' scores."""
        scores = np.array(self.sentences(*self.typical))
        return float(np.median(scores)), float(scores.std() / 2) or 1.0


def make_judge(job: Job, settings: Any) -> Judge:
    """The judge of a run, checked.

    `settings` are a method's, with `clip`, `clip_aspect`, `judge`, `max_tokens` and `batch`. Two stages, done once: answers
    are sampled, and the judge is checked. Raises `UserError` if the check says stop, unless `judge.gate` is "warn".
    """
    known = job.run.judge.exists()
    parts = _Parts(job, settings)
    rows, found = parts.checked()
    if found.verdict == "stop" and settings.judge.gate == "stop":
        raise UserError(
            f"{found.in_words} Training on it would teach nothing or do harm. Use another CLIP (--set clip=...), a scorer of "
            "your own, or SeVa, which needs no judge; --set judge.gate=warn trains all the same."
        )
    if not known:
        say(found.in_words)
    return parts.judge(rows, found)


def check_judge(job: Job, settings: Any) -> Trust:
    """What the check of a run's judge finds; stops nothing.

    `settings` are as in `make_judge`. The two stages are kept in the run, and the result in its judge.json.
    """
    return _Parts(job, settings).checked()[1]


@dataclass(frozen=True)
class _Parts:
    """The parts of one run's judge."""

    job: Job
    settings: Any

    @property
    def asked(self) -> JudgeSettings:
        return self.settings.judge

    @property
    def compared(self) -> tuple[str, str]:
        """The part to trust, and the one compared with it."""
        first = PARTS[self.asked.kind][0]
        others = ("consistency", "clip", "self_check")
        return first, next(name for name in others if name != first and name in self.scores)

    @cached_property
    def prompts(self) -> list[Prompt]:
        """A description prompt for every image."""
        return one_an_image(descriptions(self.job.prompts))

    @cached_property
    def score(self) -> Score | None:
        """The user's scorer or CLIP.

        None where the judge reads no CLIP and none is named.
        """
        if self.job.score is None and self.settings.clip is None and not self.asked.reads_clip:
            return None
        return self.job.score or clip_scorer(self.settings.clip, self.settings.clip_aspect, self.job.policy)

    @cached_property
    def name(self) -> dict[str, Any]:
        score = self.score.name if isinstance(self.score, CLIPScorer) else self.job.score_name
        asked = {name: value for name, value in asdict(self.asked).items() if name != "gate"}
        return {"scorer": score, "judge": asked, "vocabulary": fingerprint(self.job.vocabulary.entries)}

    @cached_property
    def scores(self) -> dict[str, Score]:
        """The scores of objects, by the part's name."""
        clip = self.score  # first, so that a fault in it is found before the sampling
        scores: dict[str, Score] = {"consistency": self.consistency, "self_check": SelfCheck(self.job.policy)}
        if clip is not None:
            unrelated = tuple(self.job.image(prompt.image) for prompt in self.prompts[: self.asked.debias_images])
            scores["clip"] = PhraseScorer(clip, self.asked.phrase, unrelated)
        return scores

    @cached_property
    def samples(self) -> list[Sampled]:
        """The stage `samples`: sampled answers.

        About all images if the judge needs them, else about those that it is checked on.
        """
        every = "consistency" in PARTS[self.asked.kind]
        return self.job.run.records(
            Sampled,
            "samples",
            self.prompts if every else self.prompts[: self.asked.check_images],
            lambda some: [row.to_row() for row in self.sample(some)],
            settings=self._answering,
            batch=self.settings.batch,
            title="sampling for consistency",
        )

    @cached_property
    def consistency(self) -> Consistency:
        known = {self.job.image(row.image): shares_of(row.answers, self.job.vocabulary) for row in self.samples}
        return Consistency(known, self.draw, self.job.vocabulary)

    @property
    def _answering(self) -> dict[str, Any]:
        own = {"seed": self.job.seed, "samples": self.asked.samples, "max_tokens": self.settings.max_tokens}
        return self.job.about() | own

    def sample(self, prompts: Sequence[Prompt]) -> list[Sampled]:
        """Answers of the untrained model, sampled at temperature 1."""
        job, count = self.job, self.asked.samples
        keys = [key_for(job.seed, prompt.id, "consistency", number) for prompt in prompts for number in range(count)]
        with job.policy.adapter_off():
            drawn = job.policy.generate(job.prefill(prompts), Sampling(self.settings.max_tokens, 1.0), keys, count)
        rows = []
        for number, prompt in enumerate(prompts):
            answers = drawn[number * count : (number + 1) * count]
            texts, tokens = tuple(answer.text for answer in answers), sum(len(answer.ids) for answer in answers)
            rows.append(Sampled(prompt.id, prompt.image, prompt.prompt, texts, tokens))
        return rows

    def draw(self, image: Path) -> Shares:
        """The shares of an image from outside the run."""
        [row] = self.sample([Prompt(image_digest(image), str(image.absolute()), self.prompts[0].prompt, "describe")])
        return shares_of(row.answers, self.job.vocabulary)

    def checked(self) -> tuple[list[JudgedImage], Trust]:
        """The rows of the stage `judge`, and what they show.

        Kept in judge.json too.
        """
        rows = self.check()
        weights = weights_of(rows) if self.asked.weights == "agreement" else {}
        found = replace(trust(rows, *self.compared, own_scorer=self.job.score is not None), weights=weights)
        write_atomically(self.job.run.judge, json.dumps(found.to_row(), indent=1))
        return rows, found

    def check(self) -> list[JudgedImage]:
        """The stage `judge`: scores of what the untrained model names."""
        prompts = self.prompts[: self.asked.check_images]
        others = {one.image: other.image for one, other in zip(prompts, [*prompts[1:], *prompts[:1]], strict=True)}
        scores = self.scores  # now, because the samples are a stage of their own
        asked = {name: value for name, value in self.name["judge"].items() if name not in ("kind", "weights")}
        rows = self.job.run.records(
            JudgedImage,
            "judge",
            prompts,
            lambda some: [row.to_row() for row in self.judged(some, others, scores)],
            settings=self._answering | self.name | {"judge": asked},
            batch=self.settings.batch,
            title="checking the judge",
        )
        require_scores(rows, set(scores), str(self.job.run.rows("judge")))
        return rows

    def judged(self, prompts: Sequence[Prompt], others: dict[str, str], scores: dict[str, Score]) -> list[JudgedImage]:
        """Greedy answers with every part's scores.

        Of the objects that they, or the sampled answers, name.
        """
        with self.job.policy.adapter_off():
            answers = self.job.policy.generate(self.job.prefill(prompts), Sampling(self.settings.max_tokens))
        rows = []
        for prompt, answer in zip(prompts, answers, strict=True):
            places: dict[str, float] = {}
            for mention in self.job.vocabulary.mentions(answer.text):
                places.setdefault(mention.canonical, mention.start / len(answer.text))
            image = self.job.image(prompt.image)
            names = list(dict.fromkeys([*places, *sorted(self.consistency.shares(image))]))
            asked = ((image, names), (self.job.image(others[prompt.image]), [*places]), (self.blank, [*places]))
            own, swapped, blank = (_by_name(scores, *one) for one in asked)
            objects = tuple(
                JudgedObject(name, places.get(name), own[name], swapped.get(name, {}), blank.get(name, {})) for name in names
            )
            rows.append(JudgedImage(prompt.id, prompt.image, answer.text, len(answer.ids), objects))
        return rows

    @cached_property
    def blank(self) -> Path:
        """An image of the mean colour: 0 for the tower."""
        self.job.draw_blank(self.job.run.blank)
        return self.job.run.blank

    def judge(self, rows: Sequence[JudgedImage], found: Trust) -> Judge:
        kind, typical = self.asked.kind, self._sentences()
        if kind == "clip":
            assert self.score is not None
            objects, sentences = self.scores["clip"], self.score
        else:
            parts = (Part(self.scores[name], *scale_of(rows, name), found.weights.get(name, 1.0)) for name in PARTS[kind])
            objects = Combined(tuple(parts))
            share = 0.5 if kind == "nouns" else 0.0
            sentences = SentenceScorer(objects, self._whole, self.job.vocabulary, share)
        return Judge(self.name, objects, sentences, typical, rows, found)

    def _whole(self, images: Sequence[Path], sentences: Sequence[str]) -> list[float]:
        """Scores of whole sentences, on the scale of the objects' scores; without a CLIP all are middling."""
        return [0.0] * len(sentences) if self._whole_part is None else self._whole_part(images, sentences)

    @cached_property
    def _whole_part(self) -> Part | None:
        """CLIP on whole sentences; its scale takes thousands of them, so it is found when a sentence first needs it."""
        if self.score is None:
            return None
        scores = np.array(self.score(*self._sentences()))
        return Part(self.score, float(scores.mean()), float(scores.std()) or 1.0)

    def _sentences(self) -> tuple[list[Path], list[str]]:
        """The different sentences of the sampled answers about the images that the judge is checked on."""
        found = [
            (self.job.image(row.image), text)
            for row in self.samples[: self.asked.check_images]
            for text in dict.fromkeys(text for answer in row.answers for text in SENTENCE.findall(answer))
        ]
        return [image for image, _ in found], [text for _, text in found]


def _by_name(scores: dict[str, Score], image: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Every part's score of each object about an image."""
    columns = {part: score([image] * len(names), names) for part, score in scores.items()}
    return {name: {part: column[row] for part, column in columns.items()} for row, name in enumerate(names)}
