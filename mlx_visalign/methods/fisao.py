"""FiSAO, reconstructed: fine-grained self-alignment optimization (Cui et al., arXiv 2410.14148).

The scorer that belongs to the model's own eye (CLIP, image against text) judges every object that an answer names. Its
score, measured against those of correct and of hallucinated mentions, is a reward for that word alone; PPO learns from it.
No labels, no judge, no preference pairs.

RECONSTRUCTED, not a port: no code was published, and the paper's equations 7 and 8, its algorithm and its
hyper-parameters could not be read. From the paper: the verifier, the reward against a baseline of correct and
hallucinated objects found with CHAIR, an object vocabulary, thresholds, the model's own answers. Ours:
- reinforcement learning is taken to be PPO, with TRL's defaults and a linear critic cut off from the policy.
- the reward's shapes (`band`, `affine`), clipped to [-1, 1], and `oracle`, an ablation that needs labels.
- the object as the vocabulary names it, singular, is what is scored: a piece of a word means nothing to CLIP.
- the whole reward lies on the mention's last token, so that it does not depend on how many tokens a word has; every other
  token earns only its share of the KL.
- only the first mention of an object may earn something (`repeat` may make further ones cost), every one may lose.
- rewards have no weight against the KL but `beta`: advantages are whitened, so only the ratio counts.
- pseudo-labels for calibration where nobody knows what is in the images: the model's own certain yes or no to "is there
  a ...?". They stand in the report, in calibration.json and in the adapter's config.
- word debiasing (`debias_images`), the weight of what is right (`praise`), and the guards: a rollout ends early where the
  policy left it behind; the training stops far from the reference, and where answers get short or name little.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from mlx_visalign.alignment import Alignment, Score
from mlx_visalign.calibration import Calibration, Scored, Shape, believed, calibrate
from mlx_visalign.errors import UserError
from mlx_visalign.evals.annotations import Annotations
from mlx_visalign.evals.labels import read_labels
from mlx_visalign.evaluate import split_prompt
from mlx_visalign.experience import Rewarded
from mlx_visalign.files import write_atomically
from mlx_visalign.generate import Sampling
from mlx_visalign.mentions import Reader, TokenMention
from mlx_visalign.policy import Policy
from mlx_visalign.ppo_settings import PPOSettings
from mlx_visalign.progress import say
from mlx_visalign.records import Prompt
from mlx_visalign.reinforcement import train_on_rollouts
from mlx_visalign.stage import fingerprint
from mlx_visalign.vocabulary import question


@dataclass(frozen=True)
class Settings:
    """FiSAO's settings.

    phrase              what the scorer reads of a mention; {} is the object, as in "a photo of a {}"
    labels              what is in the images: a list as in `evals.labels`, or "tiny-world"; used for calibration (and by
                        `oracle`) only. None: pseudo-labels
    calibration_images  so many images, or fewer, are described for the calibration
    least_mentions      calibration needs so many correct and so many hallucinated mentions
    debias_images       from every score the phrase's mean over so many images is taken off; 0: off
    reward              shape of the reward: band, affine, or oracle
    margin              of the band, in units of the score; below 0 it narrows the dead zone
    praise              weight of rewards above 0, beside those below
    repeat              most that a further mention of an object earns, at most 0
    max_tokens          longest answer, end token included
    batch               images described together for the calibration
    train               PPO on the model's own answers
    """

    phrase: str = "{}"
    labels: str | None = None
    calibration_images: int = 500
    least_mentions: int = 50
    debias_images: int = 0
    reward: Shape = "band"
    margin: float = 0.0
    praise: float = 1.0
    repeat: float = 0.0
    max_tokens: int = 128
    batch: int = 8
    train: PPOSettings = field(default_factory=PPOSettings)

    def __post_init__(self) -> None:
        if "{}" not in self.phrase:
            raise UserError(f"phrase is {self.phrase!r}, expected a text with {{}} where the object's name goes.")
        if self.reward == "oracle" and self.labels is None:
            raise UserError("The reward 'oracle' is what labels say: name them with labels, or take band or affine.")
        if min(self.calibration_images, self.least_mentions, self.batch, self.praise) <= 0 or self.debias_images < 0:
            raise UserError(
                "Expected calibration_images, least_mentions, batch and praise above 0 and debias_images of at least 0, got "
                f"{self}."
            )
        if self.repeat > 0:
            raise UserError(f"repeat is {self.repeat}: to reward saying the same again teaches nothing else; 0 at most.")
        Sampling(self.max_tokens)

    def foresee(self, prompts: Sequence[Prompt]) -> dict[str, int]:
        """The most there can be to do."""
        asked = len(descriptions(prompts))
        loop = self.train.loop(asked)
        rollouts = -(-loop.iters * self.train.batch_size * loop.grad_accumulation // self.train.inner_epochs)
        answers = min(asked, self.calibration_images) + rollouts
        return {"answers": answers, "answer_tokens_at_most": answers * self.max_tokens, "updates": loop.iters}


def train(job: Alignment, settings: Settings) -> None:
    """Calibration, rollouts and training, adapter; done once, and gone on with after any stop."""
    prompts = descriptions(job.prompts)
    if not prompts:
        raise UserError("FiSAO rewards the objects that descriptions name, and none of the prompts asks for a description.")
    reader, verifier = Reader(job.policy.tokenizer, job.vocabulary), make_verifier(job, settings)
    calibration = measure(job, settings, reader, verifier)
    truth = read_labels(str(settings.labels), [p.image for p in prompts], job.vocabulary) if settings.reward == "oracle" else {}
    rewarding = {name: getattr(settings, name) for name in ("reward", "margin", "praise", "repeat")}
    train_on_rollouts(
        job.policy,
        prompts,
        Judge(reader, verifier, job.image, calibration, settings, truth),
        settings.train,
        Sampling(settings.max_tokens, temperature=1.0),  # what a ratio is of: the policy as it is
        job.run.folder,
        job.seed,
        locate=job.image,
        depends_on=_scoring(job, settings) | rewarding | {"calibration": asdict(calibration)},
        on_metrics=job.on_metrics,
    )
    job.policy.save_adapter(job.run.adapter, method="fisao (reconstructed)", round=1, calibration_labels=calibration.labels)


def descriptions(prompts: Sequence[Prompt]) -> list[Prompt]:
    return [prompt for prompt in prompts if prompt.kind != "exists"]


# -- scoring ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verifier:
    """How well phrases fit images, `level` being what is taken off the score of a text: its mean over many images."""

    score: Score
    phrase: str
    level: Callable[[str], float]

    def __call__(self, images: Sequence[Path], phrases: Sequence[str]) -> list[float]:
        if not images:
            return []
        texts = [self.phrase.replace("{}", phrase) for phrase in phrases]
        return [score - self.level(text) for score, text in zip(self.score(images, texts), texts, strict=True)]


def make_verifier(job: Alignment, settings: Settings) -> Verifier:
    score = job.score
    if score is None:
        raise UserError("FiSAO needs a scorer: something that tells how well a text fits an image, such as CLIP.")
    images = [job.image(image) for image in _images(descriptions(job.prompts), settings.debias_images)]

    @cache
    def level(text: str) -> float:
        return fmean(score(images, [text] * len(images))) if images else 0.0

    return Verifier(score, settings.phrase, level)


@dataclass(frozen=True)
class Judge:
    """Answers -> their mentions with rewards."""

    reader: Reader
    verifier: Verifier
    locate: Callable[[str], Path]
    calibration: Calibration
    settings: Settings
    truth: Annotations

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[list[int]]) -> list[tuple[Rewarded, ...]]:
        found = [self.reader.mentions(ids) for ids in answers]
        named = [(self.locate(prompt.image), m.phrase) for prompt, ms in zip(prompts, found, strict=True) for m in ms]
        scores = iter(self.verifier([image for image, _ in named], [phrase for _, phrase in named]))
        return [self._rewarded(prompt.image, ms, scores) for prompt, ms in zip(prompts, found, strict=True)]

    def _rewarded(self, image: str, mentions: Sequence[TokenMention], scores: Iterator[float]) -> tuple[Rewarded, ...]:
        rewarded: list[Rewarded] = []
        seen: set[str] = set()
        for mention in mentions:
            score = next(scores)
            reward = self.reward(image, mention.canonical, score)
            if mention.canonical in seen:
                reward = min(reward, self.settings.repeat)
            seen.add(mention.canonical)
            rewarded.append(Rewarded(mention.phrase, mention.start, mention.end, mention.first, mention.last, score, reward))
        return tuple(rewarded)

    def reward(self, image: str, canonical: str, score: float) -> float:
        """What a first mention earns."""
        if self.settings.reward == "oracle":
            if image not in self.truth:
                raise UserError(f"The reward 'oracle' needs labels of every image, and {image} has none.")
            reward = 1.0 if canonical in self.truth[image] else -1.0
        else:
            reward = self.calibration.reward(score, self.settings.reward, self.settings.margin)
        return reward * self.settings.praise if reward > 0 else reward


# -- calibration ------------------------------------------------------------------------------------------------------


def measure(job: Alignment, settings: Settings, reader: Reader, verifier: Verifier) -> Calibration:
    """The stage `calibration`: the start policy's mentions with scores and labels; and what they say, calibration.json."""
    prompts = _one_an_image(descriptions(job.prompts), settings.calibration_images)
    images = [prompt.image for prompt in prompts]
    truth = None if settings.labels is None else read_labels(settings.labels, images, job.vocabulary)
    rows = job.run.stage(
        "calibration",
        [prompt for prompt in prompts if truth is None or prompt.image in truth],
        lambda some: [row.to_row() for row in scored_mentions(job, settings, reader, verifier, truth, some)],
        settings=job.about() | _scoring(job, settings) | {"max_tokens": settings.max_tokens},
        batch=settings.batch,
        title="calibrating the scorer",
    )
    found = calibrate([Scored.from_row(row) for row in rows], "pseudo" if truth is None else "given", settings.least_mentions)
    write_atomically(job.run.folder / "calibration.json", json.dumps(found.to_row() | _scoring(job, settings), indent=1))
    say(what_was_found(found))
    return found


def what_was_found(found: Calibration) -> str:
    labels = "" if found.labels == "given" else "; by PSEUDO-labels, the model's own yes and no, not by the truth"
    return (
        f"The scorer gives {found.correct} correct mentions {found.correct_mean:.4f} in the mean and {found.hallucinated} "
        f"hallucinated ones {found.hallucinated_mean:.4f} (AUC {found.auc:.3f}{labels})."
    )


def scored_mentions(
    job: Alignment,
    settings: Settings,
    reader: Reader,
    verifier: Verifier,
    truth: Annotations | None,
    prompts: Sequence[Prompt],
) -> list[Scored]:
    """Describe some images greedily; every object named, with its score and whether it is there."""
    policy, paths = job.policy, [job.image(prompt.image) for prompt in prompts]
    prefix = policy.prefill(policy.image_features(paths), [policy.prompt_ids(prompt.prompt) for prompt in prompts])
    answers = policy.generate(prefix, Sampling(settings.max_tokens))
    rows = []
    for prompt, path, answer in zip(prompts, paths, answers, strict=True):
        mentions = reader.mentions(answer.ids)
        names = list(dict.fromkeys(mention.canonical for mention in mentions))
        if truth is None:
            correct = dict(zip(names, map(believed, yes_probabilities(policy, path, names)), strict=True))
        else:
            correct = {name: name in truth[prompt.image] for name in names}
        scores = verifier([path] * len(mentions), [mention.phrase for mention in mentions])
        rows += [
            Scored(prompt.id, prompt.image, mention.canonical, mention.phrase, score, correct[mention.canonical])
            for mention, score in zip(mentions, scores, strict=True)
        ]
    return rows


def yes_probabilities(policy: Policy, image: Path, names: Sequence[str]) -> list[float]:
    """How sure the policy is that each object is in the image: p(yes) / (p(yes) + p(no)) of its answer's first token."""
    if not names:
        return []
    asked = [split_prompt(policy, question(name)) for name in names]
    prefix = policy.prefill(policy.image_features([image]), [asked[0][0]])
    words = [policy.response_ids(word)[0] for word in ("Yes", "No")]
    rows = [[*after, word] for _, after in asked for word in words]
    logps = np.array(policy.read(prefix, [rows]).logps)
    yes, no = np.array([logps[i, len(row) - 1] for i, row in enumerate(rows)]).reshape(-1, 2).T
    return (1 / (1 + np.exp(no - yes))).tolist()


def _scoring(job: Alignment, settings: Settings) -> dict[str, Any]:
    """What scores and labels depend on beside the answers."""
    chosen = {name: getattr(settings, name) for name in ("phrase", "labels", "debias_images")}
    return chosen | {"scorer": job.score_name, "vocabulary": fingerprint(job.vocabulary.entries)}


def _one_an_image(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    first = {prompt.image: prompt for prompt in reversed(prompts)}
    return [first[image] for image in _images(prompts, count)]


def _images(prompts: Sequence[Prompt], count: int) -> list[str]:
    return list(dict.fromkeys(prompt.image for prompt in prompts))[:count]
