"""Stage 2 of the tiny world: LLaVA on biased annotations.

The image tower of stage 1 is frozen. Training starts with true captions and answers and ends with the annotator's. Each image
is prefilled once; its description and several questions share the prefix (inference/prefix_cache.py). The loss is

    mean of -logp over the tokens of the descriptions + QUESTION_WEIGHT * the same mean over the tokens of the other answers

end tokens included. The means are separate, because answers have only a few tokens and yes and no are learned late.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from jaxtyping import Bool, Float, Int
from transformers import PreTrainedTokenizerFast

from mlx_visalign.data.prompt_template import prompt_ids, response_ids
from mlx_visalign.inference.logprobs import token_logps
from mlx_visalign.inference.prefix_cache import Prefix, extend, prefill, right_pad
from mlx_visalign.models import families
from mlx_visalign.models.clip import CLIP
from mlx_visalign.models.decoder import decoder_of, merge
from mlx_visalign.tiny_world import annotator
from mlx_visalign.tiny_world.architecture import IMAGE_TOKENS, llava_config
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.language import caption, random_question
from mlx_visalign.tiny_world.pretrain_clip import pixels
from mlx_visalign.tiny_world.scenes import Scene
from mlx_visalign.training.config import TrainSettings
from mlx_visalign.training.trainer import fit
from mlx_visalign.utils.arguments import DESCRIBE

SETTINGS = TrainSettings(iters=1600, learning_rate=2e-3, warmup_ratio=0.05, save_every=100)
EXACT_UPDATES = 600  # on true captions and answers, before the annotator's: the model learns to see faster that way
BATCH = 32
QUESTIONS = 3  # per image
QUESTION_WEIGHT = 2.0


@dataclass(frozen=True)
class Turns:
    """Tokens after the image, right-padded.

    The rest of the prompt, then the answer.
    """

    ids: Int[mx.array, "n l"]
    real: Bool[np.ndarray, "n l"]
    answer: Bool[mx.array, "n l"]  # true on the answer's tokens


@dataclass(frozen=True)
class Batch:
    features: Float[mx.array, "b t d"]
    descriptions: Turns  # one per image
    questions: Turns  # QUESTIONS per image, neighbours


class Conversations:
    """Random scenes with newly drawn captions and answers.

    Step n draws from (seed, n).
    """

    def __init__(
        self, scenes: Sequence[Scene], features: Float[mx.array, "n t d"], tokenizer: PreTrainedTokenizerFast, seed: int
    ):
        self.scenes, self.features, self.seed, self.step = scenes, features, seed, 0
        self.answer_ids = lambda text: response_ids(tokenizer, text)
        self.prompt_ids = cache(lambda question: after_image(tokenizer, question))

    def next(self) -> Batch:
        rng = np.random.default_rng((self.seed, self.step))
        self.step += 1
        chosen = rng.choice(len(self.scenes), BATCH, replace=False)
        scenes = [self.scenes[index] for index in chosen]
        exact = self.step <= EXACT_UPDATES
        descriptions = [(DESCRIBE, caption(scene.things) if exact else annotator.describe(scene, rng)) for scene in scenes]
        questions = [_turn(scene, rng, exact) for scene in scenes for _ in range(QUESTIONS)]
        return Batch(self.features[mx.array(chosen)].astype(mx.float32), self._turns(descriptions), self._turns(questions))

    def observe(self, metrics: dict[str, Any]) -> None:
        """Does nothing: batches do not depend on the training's progress."""

    def state(self) -> dict[str, Any]:
        return {"step": self.step}

    def restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]

    def _turns(self, texts: list[tuple[str, str]]) -> Turns:
        rows = [(self.prompt_ids(question), self.answer_ids(answer)) for question, answer in texts]
        ids, real = right_pad([prompt + answer for prompt, answer in rows])
        starts = np.array([[len(prompt)] for prompt, _ in rows])
        return Turns(ids, real, mx.array(real & (np.arange(real.shape[1]) >= starts)))


def _turn(scene: Scene, rng: np.random.Generator, exact: bool) -> tuple[str, str]:
    question = random_question(scene, rng)
    return question.prompt, question.answer if exact else annotator.answer(scene, question, rng)


def before_question(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Prompt tokens up to the end of the image.

    They are the same for every question.
    """
    ids = prompt_ids(tokenizer, "vicuna_v1", "", IMAGE_TOKENS)
    return ids[: ids.index(tokenizer.image_token_id) + IMAGE_TOKENS]


def after_image(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    return prompt_ids(tokenizer, "vicuna_v1", question, IMAGE_TOKENS)[len(before_question(tokenizer)) :]


def train_llava(clip: CLIP, scenes: Sequence[Scene], tokenizer: PreTrainedTokenizerFast, seed: int, folder: Path) -> Any:
    """Train projector and language model of an mlx-vlm LLaVA.

    Its frozen image tower is CLIP's.
    """
    mx.random.seed(seed)
    model = families.build_model(llava_config(tokenizer))
    model.vision_tower.vision_model.update(clip.vision_model.parameters())
    source = Conversations(scenes, tower_features(model, scenes), tokenizer, seed)
    before = mx.array(before_question(tokenizer))

    def loss(batch: Batch) -> tuple[mx.array, dict[str, mx.array]]:
        prefix = read_images(model, before, batch.features)
        description, questions = (_mean_loss(model, prefix, turns) for turns in (batch.descriptions, batch.questions))
        return description + QUESTION_WEIGHT * questions, {"description_loss": description, "question_loss": questions}

    trained = {"projector": model.multi_modal_projector, "language": model.language_model}
    fit(trained, loss, source, SETTINGS, folder, depends_on={"seed": seed})
    return model


def tower_features(model: Any, scenes: Sequence[Scene], chunk: int = 200) -> Float[mx.array, "n t d"]:
    """Features of the frozen tower, in float16.

    A policy's feature cache has the same dtype.
    """
    parts = []
    for start in range(0, len(scenes), chunk):
        images = np.stack([draw(scene) for scene in scenes[start : start + chunk]])
        parts.append(families.of(model).features(model, pixels(images)).astype(mx.float16))
        mx.eval(parts)
    return mx.concatenate(parts)


def read_images(model: Any, before: Int[mx.array, " p"], features: Float[mx.array, "b t d"]) -> Prefix:
    """Prefill the part of the prompt that all questions share."""
    ids = mx.broadcast_to(before, (len(features), len(before)))
    decoder = decoder_of(model)
    image_token = model.config.image_token_index
    embeds = merge(decoder.embed(ids), ids, image_token, families.of(model).project(model, features))
    return prefill(decoder, embeds, np.ones(ids.shape, dtype=bool))


def _mean_loss(model: Any, prefix: Prefix, turns: Turns) -> mx.array:
    decoder = decoder_of(model)
    copies = len(turns.real) // len(prefix.mask)
    states, _ = extend(decoder, prefix.branch(copies), turns.ids, turns.real)
    logps = token_logps(states, turns.ids, decoder.head)
    counted = turns.answer[:, 1:]
    return -mx.where(counted, logps, 0.0).sum() / counted.sum()
