"""Stage 1 of the tiny world: CLIP on exact labels.

Every image is scored against every text of the batch, and it is known whether each text fits. The loss is a sigmoid per pair
(as in SigLIP, Zhai et al. 2023, arXiv:2303.15343) instead of a softmax over pairs, because most phrases fit many images of a
batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from jaxtyping import Float, Int, UInt8
from transformers import CLIPTokenizer

from mlx_visalign.models.clip import CLIP, CLIPConfig
from mlx_visalign.tiny_world.architecture import clip_config
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.language import random_claim, sentence
from mlx_visalign.tiny_world.scenes import COLOURS, SHAPES, TYPES, Scene
from mlx_visalign.training.config import TrainSettings
from mlx_visalign.training.trainer import fit

# OpenAI's, which every CLIP and LLaVA-1.5 uses.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

SETTINGS = TrainSettings(iters=1000, learning_rate=2e-3, warmup_ratio=0.1, save_every=100)
BATCH = 128
OWN_WEIGHT = 20.0  # weight of the sentence written for an image, relative to those written for others


@dataclass(frozen=True)
class Batch:
    pixels: Float[mx.array, "b 48 48 3"]
    claims: Int[mx.array, "b l"]  # one sentence per image, true of it or nearly so
    phrase_truth: Float[mx.array, "b p"]
    claim_truth: Float[mx.array, "b b"]


def pixels(images: UInt8[np.ndarray, "b h w 3"]) -> Float[mx.array, "b h w 3"]:
    """Pixels normalised for CLIP."""
    return (mx.array(images) / 255 - mx.array(MEAN)) / mx.array(STD)


# Scored against every image of a batch: the 40 types, and each colour and each shape alone.
PHRASES = [f"a {type}" for type in TYPES] + [f"a {colour} object" for colour in COLOURS] + [f"a {s}" for s in SHAPES]


def phrase_truth(scene: Scene) -> list[bool]:
    colours = {type.colour for type in scene.types}
    shapes = {type.shape for type in scene.types}
    return [type in scene.types for type in TYPES] + [c in colours for c in COLOURS] + [s in shapes for s in SHAPES]


class Batches:
    """Random images with one claim each.

    A claim is true or false in one respect. Step n draws from (seed, n).
    """

    def __init__(self, scenes: Sequence[Scene], tokenizer: CLIPTokenizer, seed: int):
        self.scenes, self.tokenizer, self.seed, self.step = scenes, tokenizer, seed, 0
        self.images = np.stack([draw(scene) for scene in scenes])

    def next(self) -> Batch:
        rng = np.random.default_rng((self.seed, self.step))
        self.step += 1
        chosen = rng.choice(len(self.scenes), BATCH, replace=False)
        scenes = [self.scenes[index] for index in chosen]
        claims = [random_claim(scene, rng) for scene in scenes]
        return Batch(
            pixels(self.images[chosen]),
            text_ids(self.tokenizer, [sentence(claim) for claim in claims]),
            mx.array([phrase_truth(scene) for scene in scenes], dtype=mx.float32),
            mx.array([[claim in scene.things for claim in claims] for scene in scenes], dtype=mx.float32),
        )

    def observe(self, metrics: dict[str, Any]) -> None:
        """Does nothing: batches do not depend on the training's progress."""

    def state(self) -> dict[str, Any]:
        return {"step": self.step}

    def restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


def text_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Int[mx.array, "n l"]:
    return mx.array(tokenizer(texts, padding=True).input_ids)


class Bias(nn.Module):
    """The logit's bias, from which the threshold follows.

    A CLIP checkpoint has no such parameter; as a cosine, -value / scale, it is exported in config.json.
    """

    def __init__(self):
        super().__init__()
        self.value = mx.array(-4.0)


def train_clip(scenes: Sequence[Scene], tokenizer: CLIPTokenizer, seed: int, folder: Path) -> tuple[CLIP, float]:
    """Train CLIP; also returns the threshold.

    The threshold is the cosine above which a text fits an image.
    """
    mx.random.seed(seed)
    clip, bias = CLIP(CLIPConfig.from_dict(clip_config(tokenizer))), Bias()
    phrases = text_ids(tokenizer, PHRASES)

    def loss(batch: Batch) -> tuple[mx.array, dict[str, mx.array]]:
        images = clip.encode_image(batch.pixels) * mx.exp(clip.logit_scale)
        phrase_loss = _cross_entropy(images @ clip.encode_text(phrases).T + bias.value, batch.phrase_truth).mean()
        claim_losses = _cross_entropy(images @ clip.encode_text(batch.claims).T + bias.value, batch.claim_truth)
        weight = 1 + (OWN_WEIGHT - 1) * mx.eye(BATCH)
        claim_loss = (weight * claim_losses).sum() / weight.sum()
        return phrase_loss + claim_loss, {"phrase_loss": phrase_loss, "claim_loss": claim_loss}

    source = Batches(scenes, tokenizer, seed)
    fit({"clip": clip, "bias": bias}, loss, source, SETTINGS, folder, depends_on={"seed": seed})
    return clip, (-bias.value / mx.exp(clip.logit_scale)).item()


def _cross_entropy(logits: Float[mx.array, "b t"], truth: Float[mx.array, "b t"]) -> Float[mx.array, "b t"]:
    return nn.losses.binary_cross_entropy(logits, truth, with_logits=True, reduction="none")


def phrase_auc(clip: CLIP, tokenizer: CLIPTokenizer, scenes: Sequence[Scene]) -> float:
    """ROC AUC of phrases such as "a red circle".

    The probability that a true pair of an image and one of the 40 types has a higher cosine than a false one.
    """
    images = clip.encode_image(pixels(np.stack([draw(scene) for scene in scenes])))
    cosines = np.array(images @ clip.encode_text(text_ids(tokenizer, PHRASES[: len(TYPES)])).T).ravel()
    truth = np.array([phrase_truth(scene)[: len(TYPES)] for scene in scenes]).ravel()
    ranks = cosines.argsort().argsort() + 1
    true, false = truth.sum(), (~truth).sum()
    return float((ranks[truth].sum() - true * (true + 1) / 2) / (true * false))
