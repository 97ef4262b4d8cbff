"""The work of a run by stage: memory and operations.

Methods describe their `Workload`, which needs no model. Bytes are counted as in `memory`, within 15 % of
`mx.get_peak_memory` (tests/preflight/test_memory.py). An operation is an addition or a multiplication; counted are the matrix
products of the language model. Not counted: the vision tower and a CLIP, a few per cent at 7B, and LoRA (3 %).
"""

from dataclasses import dataclass

from mlx_visalign.models.attention import BLOCK
from mlx_visalign.preflight.memory import FLOAT32, Setting, Shape, adapter_bytes, staying_bytes
from mlx_visalign.training.losses import PairLoss

SCORING = "scoring the reference"


@dataclass(frozen=True)
class Answering:
    """A stage that samples or scores answers.

    Numbers of tokens are upper bounds.

    total     prompts in total
    sampled   tokens sampled in total
    together  prompts per batch
    tokens    tokens of the longest answer
    streams   answers sampled in parallel per prompt
    drawn     sampled at random, otherwise greedy
    held      tokens per prompt whose keys and values are kept besides those of the answers being sampled
    read      answers per prompt that are scored together in the end
    prefills  prefills per prompt
    prefixes  prefilled prefixes per prompt that are in memory together
    adapters  arrays as large as the trained adapter: 0 before training, 3 with AdamW's moments
    """

    title: str
    total: int
    sampled: int
    together: int
    tokens: int
    streams: int = 1
    drawn: bool = False
    held: int = 0
    read: int = 0
    prefills: int = 1
    prefixes: int = 1
    adapters: int = 0


@dataclass(frozen=True)
class Workload:
    """The work of a whole run.

    trained   forward and backward passes of single prompts in total
    scorer    the folder and aspect of the CLIP that scores answers, or None; the folder is None for the tiny model's CLIP
    rounds    rounds of LoRA
    copies    answers per prompt in a training batch
    """

    stages: tuple[Answering, ...]
    trained: int
    copies: int = 2
    rounds: int = 1
    scorer: tuple[str | None, str] | None = None


def reference_scoring(loss: PairLoss, pairs: int, together: int, longest: int) -> Answering:
    """The stage that scores reference log-probabilities."""
    images = loss.prefills
    return Answering(SCORING, pairs, 0, together, longest, read=len(loss.reads), prefills=images, prefixes=images)


def further_scoring(loss: PairLoss, pairs: int, together: int, longest: int) -> tuple[Answering, ...]:
    """`reference_scoring` if pairs lack what the loss needs."""
    return (reference_scoring(loss, pairs, together, longest),) if loss.needs_more else ()


def answering_bytes(shape: Shape, setting: Setting, stage: Answering) -> float:
    """Peak bytes of a stage.

    The largest of: prefilling the prompts, sampling the last token, scoring the answers.
    """
    n, per_token = stage.together, 2 * shape.kv_width * setting.number  # keys and values of one token in one layer
    prefix = n * setting.prompt * per_token * shape.layers
    staying = staying_bytes(shape, setting) + stage.adapters * adapter_bytes(shape, setting.rank)
    prefill = _block_bytes(shape, setting, n, setting.prompt, min(BLOCK, setting.prompt))
    reading = _reading_bytes(shape, setting, stage)
    sampling = _sampling_bytes(shape, setting, stage) if stage.sampled else 0
    if stage.prefixes > 1:  # the second prefill overlaps with the scoring that follows
        reading = _beside(prefill, reading, 1 / 4)
    return staying + max(prefix + prefill, prefix + sampling, stage.prefixes * prefix + reading)


def _beside(one: float, other: float, share: float) -> float:
    """Peak of two overlapping computations: MLX works ahead, so a `share` of the smaller adds to the larger."""
    return max(one, other) + share * min(one, other)


def _block_bytes(shape: Shape, setting: Setting, rows: int, tokens: int, scores: int) -> float:
    """One layer's forward pass over `tokens` new tokens per row, with `scores` attention scores for each.

    In half precision it takes a third more, because norms and rotations are computed in float32. Fitted on CPUs.
    """
    number = setting.number if setting.number == FLOAT32 else 1.35 * setting.number
    return rows * tokens * number * (3 * shape.inner + 15 * shape.width + shape.heads * scores)


def _sampling_bytes(shape: Shape, setting: Setting, stage: Answering) -> float:
    """Sampling the last token: keys and values of the answers, those kept, and several copies of one layer's scores."""
    n, per_token = stage.together * stage.streams, 2 * shape.kv_width * setting.number
    own = (n * stage.tokens * (shape.layers + 1) + stage.together * stage.held * shape.layers) * per_token
    scores = 4 * n * shape.heads * (setting.prompt + stage.tokens) * setting.number
    # sampling._draw has logits, probabilities, their order and sums; greedy decoding only the logits.
    drawing = (13 if stage.drawn else 2) * n * shape.vocabulary * FLOAT32
    return own + max(scores, drawing)


def _reading_bytes(shape: Shape, setting: Setting, stage: Answering) -> float:
    """Scoring answers: the last layer, whose scores are computed in pieces, and the logits (logprobs.token_logps)."""
    n = stage.together * stage.read
    layer = _block_bytes(shape, setting, n, stage.tokens, 2 * (setting.prompt + stage.tokens))
    number = setting.number if setting.number < FLOAT32 else 0
    logits = n * stage.tokens * shape.vocabulary * (FLOAT32 + number)
    return _beside(layer, logits, 1 / 2)


def token_flops(shape: Shape) -> float:
    """Operations of all blocks per token, without attention.

    Two per weight.
    """
    return 2 * shape.layers * (2 * shape.width**2 + 2 * shape.width * shape.kv_width + 3 * shape.width * shape.inner)


def _attention_flops(shape: Shape, tokens: int, seen: float) -> float:
    """Attention scores and weighted values: `tokens` that attend to `seen` each, masked ones included."""
    return 4 * shape.width * shape.layers * tokens * seen


def _head_flops(shape: Shape) -> float:
    return 2 * shape.width * shape.vocabulary


def reading_flops(shape: Shape, setting: Setting, stage: Answering) -> float:
    """Operations of a stage's prefills and scored answers."""
    prompt = setting.prompt * token_flops(shape) + _attention_flops(shape, setting.prompt, setting.prompt)
    answer = stage.tokens * (token_flops(shape) + _head_flops(shape))
    answer += _attention_flops(shape, stage.tokens, setting.prompt + stage.tokens)
    return stage.total * (stage.prefills * prompt + stage.read * answer)


def sampling_flops(shape: Shape, setting: Setting, stage: Answering) -> float:
    """Operations of a stage's sampled tokens, at most."""
    each = token_flops(shape) + _head_flops(shape) + _attention_flops(shape, 1, setting.prompt + stage.tokens / 2)
    return stage.sampled * each


def training_flops(shape: Shape, setting: Setting) -> float:
    """Operations of training on one prompt with its answers.

    The base is frozen, so the backward pass costs as much as one forward pass; checkpointing adds another. The head is
    applied to answers only.
    """
    answers, prompts = setting.copies * setting.answer, setting.prefills * setting.prompt
    blocks = token_flops(shape) * (prompts + answers)
    blocks += _attention_flops(shape, prompts, setting.prompt)
    blocks += _attention_flops(shape, answers, setting.prompt + setting.answer)
    return (3 if setting.checkpoint else 2) * blocks + 2 * _head_flops(shape) * answers
