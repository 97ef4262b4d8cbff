"""What a run has to do, stage by stage, and what each stage takes: bytes at its peak, and floating-point operations.

Methods say the `Workload`; no model is needed for it. The bytes are counted as in `memory`, to 15 % of what
`mx.get_peak_memory` says (tests/preflight/test_memory.py). An operation is an addition or a multiplication; counted are the
matrix products of the language model. Left out are the vision tower and a CLIP, a few per cent at 7B, and LoRA (3 %).
"""

from dataclasses import dataclass

from mlx_visalign.models.attention import BLOCK
from mlx_visalign.preflight.memory import FLOAT32, Setting, Shape, adapter_bytes, staying_bytes
from mlx_visalign.training.losses import PairLoss

SCORING = "scoring the reference"


@dataclass(frozen=True)
class Answering:
    """A stage in which the model answers. Numbers of tokens are the most there can be.

    total     prompts in all
    sampled   tokens sampled in all
    together  prompts read together
    tokens    of the longest answer
    streams   answers in the making of each prompt
    drawn     at random; or else the likeliest tokens are taken
    held      tokens of each prompt whose keys and values are held beside those of the streams
    read      answers of each prompt that are read together in the end, for their log-probabilities
    prefills  times that each prompt is read with its image
    prefixes  so read, of each prompt, in memory in the end
    adapters  arrays as large as the adapter that is trained: none before the training, 3 with AdamW's moments
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
    """All that a run does.

    trained   prompts' forward and backward passes in all
    judge     the folder of the CLIP that judges and how it sees images, if the method has one; no folder: the tiny one
    rounds    times that a round of LoRA is added
    copies    answers of each prompt in a training batch
    """

    stages: tuple[Answering, ...]
    trained: int
    copies: int = 2
    rounds: int = 1
    judge: tuple[str | None, str] | None = None


def reference_scoring(loss: PairLoss, pairs: int, together: int, longest: int) -> Answering:
    """The stage that scores what a loss measures against."""
    images = loss.prefills
    return Answering(SCORING, pairs, 0, together, longest, read=len(loss.reads), prefills=images, prefixes=images)


def further_scoring(loss: PairLoss, pairs: int, together: int, longest: int) -> tuple[Answering, ...]:
    """The same where a method's own pairs do not bring it all."""
    return (reference_scoring(loss, pairs, together, longest),) if loss.needs_more else ()


def answering_bytes(shape: Shape, setting: Setting, stage: Answering) -> float:
    """The peak of a stage: reading the prompts, sampling the last token, or reading the answers, whichever takes more."""
    n, per_token = stage.together, 2 * shape.kv_width * setting.number  # keys and values of one token in one layer
    prefix = n * setting.prompt * per_token * shape.layers
    staying = staying_bytes(shape, setting) + stage.adapters * adapter_bytes(shape, setting.rank)
    prefill = _block_bytes(shape, setting, n, setting.prompt, min(BLOCK, setting.prompt))
    reading = _reading_bytes(shape, setting, stage)
    sampling = _sampling_bytes(shape, setting, stage) if stage.sampled else 0
    if stage.prefixes > 1:  # the second prefill and what is read after it are worked out at once
        reading = _beside(prefill, reading, 1 / 4)
    return staying + max(prefix + prefill, prefix + sampling, stage.prefixes * prefix + reading)


def _beside(one: float, other: float, share: float) -> float:
    """MLX hands out work ahead of its turn, so that beside the larger of two about this share of the smaller is there."""
    return max(one, other) + share * min(one, other)


def _block_bytes(shape: Shape, setting: Setting, rows: int, tokens: int, scores: int) -> float:
    """One layer that reads `tokens` new ones in each row and keeps nothing for a backward pass; so many scores for each.

    In half precision a third more, because norms and rotations are worked out in float32. Fitted on CPUs.
    """
    number = setting.number if setting.number == FLOAT32 else 1.35 * setting.number
    return rows * tokens * number * (3 * shape.inner + 15 * shape.width + shape.heads * scores)


def _sampling_bytes(shape: Shape, setting: Setting, stage: Answering) -> float:
    """The last token: the streams' own keys and values, those held, and the scores of one layer, some times over."""
    n, per_token = stage.together * stage.streams, 2 * shape.kv_width * setting.number
    own = (n * stage.tokens * (shape.layers + 1) + stage.together * stage.held * shape.layers) * per_token
    scores = 4 * n * shape.heads * (setting.prompt + stage.tokens) * setting.number
    # sampling._draw has the logits, probabilities, their order and sums; where the likeliest is taken, the logits alone.
    drawing = (13 if stage.drawn else 2) * n * shape.vocabulary * FLOAT32
    return own + max(scores, drawing)


def _reading_bytes(shape: Shape, setting: Setting, stage: Answering) -> float:
    """The answers in the last layer, their scores made of pieces, and their logits (logprobs.token_logps)."""
    n = stage.together * stage.read
    layer = _block_bytes(shape, setting, n, stage.tokens, 2 * (setting.prompt + stage.tokens))
    number = setting.number if setting.number < FLOAT32 else 0
    logits = n * stage.tokens * shape.vocabulary * (FLOAT32 + number)
    return _beside(layer, logits, 1 / 2)


def token_flops(shape: Shape) -> float:
    """Of all blocks for one token, attention left out: 2 for every weight."""
    return 2 * shape.layers * (2 * shape.width**2 + 2 * shape.width * shape.kv_width + 3 * shape.width * shape.inner)


def _attention_flops(shape: Shape, tokens: int, seen: float) -> float:
    """Scores and their mix of values, of so many tokens that see so many in the mean; the masked ones are computed too."""
    return 4 * shape.width * shape.layers * tokens * seen


def _head_flops(shape: Shape) -> float:
    return 2 * shape.width * shape.vocabulary


def reading_flops(shape: Shape, setting: Setting, stage: Answering) -> float:
    """A stage's prompts and answers that are read whole."""
    prompt = setting.prompt * token_flops(shape) + _attention_flops(shape, setting.prompt, setting.prompt)
    answer = stage.tokens * (token_flops(shape) + _head_flops(shape))
    answer += _attention_flops(shape, stage.tokens, setting.prompt + stage.tokens)
    return stage.total * (stage.prefills * prompt + stage.read * answer)


def sampling_flops(shape: Shape, setting: Setting, stage: Answering) -> float:
    """A stage's tokens that are sampled one after the other, at most."""
    each = token_flops(shape) + _head_flops(shape) + _attention_flops(shape, 1, setting.prompt + stage.tokens / 2)
    return stage.sampled * each


def training_flops(shape: Shape, setting: Setting) -> float:
    """The forward and backward pass of one prompt with its answers.

    The base is frozen, so the backward pass is one forward more; checkpointing adds another. The head is for answers alone.
    """
    answers, prompts = setting.copies * setting.answer, setting.prefills * setting.prompt
    blocks = token_flops(shape) * (prompts + answers)
    blocks += _attention_flops(shape, prompts, setting.prompt)
    blocks += _attention_flops(shape, answers, setting.prompt + setting.answer)
    return (3 if setting.checkpoint else 2) * blocks + 2 * _head_flops(shape) * answers
