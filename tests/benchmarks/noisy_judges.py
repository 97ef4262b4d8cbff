"""Judges as weak as on photos: noise for every image and object, so that errors are not built into a word.

    python tests/benchmarks/tiny_proof.py --recipe csr --preset tiny --clip-auc .72 --consistency-auc .75 ...

The embedded CLIP has seen exact labels, and the tiny model's own samples are better than a real one's. Both get Gaussian
noise that depends on the image and the object alone: asked again, a judge repeats itself. `noise_for` finds how much it takes
until the AUC over the base's greedy mentions is as low as asked for; labels of validation scenes are used for this, and for
nothing else.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.data.records import Prompt
from mlx_visalign.inference.policy import Policy
from mlx_visalign.methods import judge
from mlx_visalign.methods.csr import Settings as CSRSettings
from mlx_visalign.methods.job import Job
from mlx_visalign.methods.judge import JudgeSettings, make_judge
from mlx_visalign.runs.run import Run
from mlx_visalign.scorers import Score
from mlx_visalign.scorers.clip import clip_scorer
from mlx_visalign.scorers.consistency import Consistency
from mlx_visalign.scorers.self_check import SelfCheck
from mlx_visalign.scorers.trust import separation
from mlx_visalign.tiny_world.source import TinyWorld, world_mix, world_photos
from mlx_visalign.utils.arguments import DESCRIBE

HALVINGS = 20
SCENES = 300  # validation scenes


class Noisy:
    """A scorer with `noise` times a draw from N(0, 1) on each score.

    The draw belongs to the judge's part, the image's name and the objects that the text names: a sentence and a phrase about
    the same object have the same error.
    """

    def __init__(self, score: Score, noise: float, vocabulary: Vocabulary, part: str):
        self.score, self.noise, self.vocabulary, self.part = score, noise, vocabulary, part

    def __call__(self, images: Sequence[Path], texts: Sequence[str]) -> list[float]:
        scores = self.score(images, texts)
        return [score + self.noise * self.error(i.name, t) for score, i, t in zip(scores, images, texts, strict=True)]

    def error(self, image: str, text: str) -> float:
        """The mean error of the objects that a text names."""
        names = sorted({mention.canonical for mention in self.vocabulary.mentions(text)}) or [text]
        return float(np.mean([_normal(self.part, image, name) for name in names]))


def _normal(*names: object) -> float:
    digest = hashlib.sha256("\x1f".join(map(str, names)).encode()).digest()
    return float(np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal())


def auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """The AUC of these scores."""
    return separation(scores[truth], scores[~truth])


def noise_for(scores: np.ndarray, errors: np.ndarray, truth: np.ndarray, wanted: float) -> float:
    """The noise with which these scores' AUC is as low as `wanted`; 0 if it is lower already."""
    low, high = 0.0, 20 * float(scores.std())
    if auc(scores, truth) <= wanted:
        return 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if auc(scores + middle * errors, truth) > wanted else (low, middle)
    return high


class WeakJudges:
    """Noise on the judge's parts, as much as gives the wanted AUCs; parts without one are left as they are."""

    def __init__(self, policy: Policy, clip: str | None, folder: Path, aucs: dict[str, float]):
        self.aucs, self.vocabulary = aucs, world_mix(0).vocabulary
        self.clip = clip_scorer(clip, "pad", policy)
        self.name = ", ".join(f"{part} {wanted}" for part, wanted in aucs.items())
        self.noise = self._found(policy, clip, folder)

    def score(self) -> Score | None:
        """The scorer that takes CLIP's place; None: CLIP."""
        return Noisy(self.clip, self.noise["clip"], self.vocabulary, "clip") if "clip" in self.noise else None

    def apply(self) -> None:
        """Give every judge the noisy parts that are not CLIP."""
        noise, vocabulary = self.noise, self.vocabulary

        class NoisyConsistency(Consistency):
            def __call__(self, images: Sequence[Path], objects: Sequence[str]) -> list[float]:
                return Noisy(super().__call__, noise["consistency"], vocabulary, "consistency")(images, objects)

        class NoisySelfCheck(SelfCheck):
            def __call__(self, images: Sequence[Path], objects: Sequence[str]) -> list[float]:
                return Noisy(super().__call__, noise["self_check"], vocabulary, "self_check")(images, objects)

        if "consistency" in noise:
            judge.Consistency = NoisyConsistency  # type: ignore[misc]
        if "self_check" in noise:
            judge.SelfCheck = NoisySelfCheck  # type: ignore[misc]

    def _found(self, policy: Policy, clip: str | None, folder: Path) -> dict[str, float]:
        """The noise of each part, found on validation scenes."""
        photos = world_photos(folder, "validation", SCENES, start=0)
        prompts = [Prompt(photo.id, photo.image, DESCRIBE, "describe") for photo in photos]
        settings = CSRSettings(clip=clip, max_tokens=96, batch=32, judge=JudgeSettings(check_images=SCENES))
        with Run(folder) as run:
            rows = make_judge(Job(run, policy, prompts, 0, vocabulary=self.vocabulary), settings).checked
        truth = TinyWorld().labels([row.image for row in rows])
        named = [(row.image, one) for row in rows for one in row.objects if one.place is not None]
        right = np.array([one.object in truth[image] for image, one in named])
        found = {}
        for part in named[0][1].own:
            own = np.array([one.own[part] for _, one in named])
            noisy = Noisy(lambda images, texts: [0.0] * len(texts), 1.0, self.vocabulary, part)
            errors = np.array(noisy([Path(image) for image, _ in named], [one.object for _, one in named]))
            print(f"{part}: AUC {auc(own, right):.3f}", end="")
            if part in self.aucs:
                found[part] = noise_for(own, errors, right, self.aucs[part])
                print(f", with noise of {found[part]:.3g}: {auc(own + found[part] * errors, right):.3f}", end="")
            print(flush=True)
        return found
