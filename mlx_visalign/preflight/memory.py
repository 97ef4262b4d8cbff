"""How much memory a model and its training will take: told from config.json, before any weight is read.

Every array that training keeps for the backward pass is counted from the shapes; what a single layer needs for a moment is
a formula fitted to `mx.get_peak_memory`. tests/preflight/test_memory.py holds both to 15 % of measured peaks. Counted are the
weights, the adapter with AdamW's state, the activations of the fold (fold.py), the logits of the answers, the feature
cache and a CLIP that judges. Not counted: the interpreter (0.3 GB) and other programs. What answering takes: `workload`.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from mlx_visalign.models import families
from mlx_visalign.models.attention import BLOCK
from mlx_visalign.models.clip import CLIP, CLIPConfig
from mlx_visalign.training.checkpoint import KEPT
from mlx_visalign.utils.files import read_json

FLOAT32 = 4
QUANTISED_GROUP = 64  # weights that share a scale and a bias


@dataclass(frozen=True)
class Shape:
    """What decides a model's memory.

    image_bytes  an image's features in the cache (policy.FeatureCache): the class token's too, in float16
    matrices     weights of the language model that can be quantised (its linear layers, embedding and head)
    others       all other weights: norms, projector, vision tower
    tower        the vision tower's width, inner width, image size and patch size, and how many of its blocks are used
    """

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    image_tokens: int
    image_bytes: int
    matrices: int
    others: int
    tower: tuple[int, int, int, int, int]

    @property
    def kv_width(self) -> int:
        return self.width // self.heads * self.kv_heads


@dataclass(frozen=True)
class Setting:
    """What decides the memory of a training.

    bits         of a weight of the language model: 4 or 8 (quantised), 16 or 32
    rank         of the round that is trained
    past_rank    of the rounds before it, which are frozen
    prompt       tokens, the image's too
    answer       tokens of the longest answer
    batch        prompts in one forward of the training
    copies       answers of each prompt there: DPO has two, mDPO three, PPO one
    prefills     times that each prompt is read there with an image: mDPO reads it twice
    checkpoint   layers are recomputed in the backward pass
    images       whose features are kept, as long as they take no more than
    cache_gb     so many GB
    number       bytes of an activation: 2, or 4 in float32
    judge        bytes of the CLIP that judges the answers, if one does
    """

    bits: int = 16
    rank: int = 16
    past_rank: int = 0
    prompt: int = 640
    answer: int = 256
    batch: int = 1
    copies: int = 2
    prefills: int = 1
    checkpoint: bool = False
    images: int = 0
    cache_gb: float = 1.0
    number: int = 2
    judge: float = 0.0


def shape_of(model: Any) -> Shape:
    """The shape of a model, whose weights may as well not be there yet."""
    text = model.language_model.config
    vision = model.config.vision_config
    sizes = [(name, array.size, array.ndim) for name, array in dict(tree_flatten(model.parameters())).items()]
    matrices = sum(size for name, size, ndim in sizes if name.startswith("language_model.") and ndim == 2)
    return Shape(
        width=text.hidden_size,
        inner=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        vocabulary=text.vocab_size,
        image_tokens=families.of(model).image_tokens(model),
        image_bytes=2 * vision.hidden_size * ((vision.image_size // vision.patch_size) ** 2 + 1),
        matrices=matrices,
        others=sum(size for _, size, _ in sizes) - matrices,
        tower=(
            vision.hidden_size,
            vision.intermediate_size,
            vision.image_size,
            vision.patch_size,
            range(vision.num_hidden_layers + 1)[model.config.vision_feature_layer],
        ),
    )


@cache
def read_shape(folder: Path) -> tuple[Shape, int, int]:
    """A model folder's shape, the bits of its weights and the bytes of its activations.

    Only config.json is read: MLX is lazy, and the model that is built here never gets any weights.
    """
    config = read_json(folder / "config.json")
    shape = shape_of(families.build_model(config))
    dtype = config.get("dtype") or config.get("torch_dtype") or "float16"
    number = FLOAT32 if dtype == "float32" else 2
    return shape, config.get("quantization", {}).get("bits", 8 * number), number


def weights_bytes(shape: Shape, setting: Setting) -> float:
    """The model. A quantised weight has its bits and, with 63 others, a scale and a bias."""
    each = setting.bits / 8
    if setting.bits < 16:
        each += 2 * setting.number / QUANTISED_GROUP
    return shape.matrices * each + shape.others * setting.number


def adapter_bytes(shape: Shape, rank: int) -> float:
    """A and B on the seven linear layers of every block, in float32 (lora.attach): rank x (inputs + outputs) each."""
    width, inner, kv = shape.width, shape.inner, shape.kv_width
    return FLOAT32 * rank * shape.layers * (2 * (width + width) + 2 * (width + kv) + 3 * (width + inner))


def checkpoints_bytes(shape: Shape, rank: int) -> float:
    """On disk at once: the checkpoints kept and the one being written (checkpoint.py), weights and Adam's two moments each."""
    return (KEPT + 1) * 3 * adapter_bytes(shape, rank)


def clip_bytes(shape: Shape, config: CLIPConfig, shares: bool) -> float:
    """A CLIP, in float32. `shares`: it goes on from LLaVA's features, if their towers are alike, and drops its own blocks."""
    weights = FLOAT32 * sum(
        array.size for array in dict(tree_flatten(CLIP(config).parameters())).values()
    )  # lazy: none is drawn
    *sizes, blocks = shape.tower
    vision = config.vision
    if shares and sizes == [vision.hidden_size, vision.intermediate_size, vision.image_size, vision.patch_size]:
        width, inner = vision.hidden_size, vision.intermediate_size
        # Four square matrices and the two of the MLP, their biases, and two norms of two vectors each.
        weights -= FLOAT32 * blocks * (4 * width**2 + 2 * width * inner + 9 * width + inner)
    return weights


def staying_bytes(shape: Shape, setting: Setting) -> float:
    """What is there all the time, adapters' own state aside: weights, the rounds before, features, the judge."""
    features = min(setting.images * shape.image_bytes, setting.cache_gb * 1e9)
    return weights_bytes(shape, setting) + adapter_bytes(shape, setting.past_rank) + features + setting.judge


def training_bytes(shape: Shape, setting: Setting) -> float:
    """The peak of an update: what stays, and the higher of two moments, at the logits and in one layer's backward pass.

    What stays: weights; adapter, its gradient and Adam's two moments (train._Groups); what the backward pass was left.
    That is, per token in all n answers and their b prompts, T = b prompt + n answer, and in each layer:
    kept whole          `_kept_numbers`; of the prompts in the last layer, which reads their last tokens alone
                        (fold.prefill), no more than with checkpointing
    with checkpointing  what goes into a layer and the keys and values it returns (fold._run_layer), and one layer whole,
                        of what is about one image at a time
    """
    width, kv, n = shape.width, shape.kv_width, setting.copies * setting.batch
    prompts = setting.prefills * setting.batch * setting.prompt
    tokens = prompts + n * setting.answer
    staying = staying_bytes(shape, setting) + 4 * adapter_bytes(shape, setting.rank)
    # In float32: the logits, and their exponentials and gradient by turns (logprobs.token_logps).
    logits = n * setting.answer * shape.vocabulary * (2.2 * FLOAT32 + (setting.number if setting.number < FLOAT32 else 0))
    inputs, whole = setting.number * (width + 2 * kv), setting.number * _kept_numbers(shape)
    passing = _passing_bytes(shape, setting)
    if setting.checkpoint:
        return staying + shape.layers * tokens * inputs + max(logits, tokens / setting.prefills * whole + passing)
    return staying + (shape.layers * tokens - prompts) * whole + prompts * inputs + max(logits, passing)


def _kept_numbers(shape: Shape) -> int:
    """What a layer keeps of a token: its input, queries, keys, values, what was attended to, the sum, gate and up."""
    return 4 * shape.width + 2 * shape.kv_width + 2 * shape.inner


def _passing_bytes(shape: Shape, setting: Setting) -> float:
    """What the backward pass of one layer makes for a moment: gradients, and all that was not kept. Fitted on CPUs.

    Scores of prompts come a block at a time, those of the answers all at once. LoRA's inputs are made float32.
    """
    prompts, n = setting.batch * setting.prompt, setting.copies * setting.batch
    blocks = shape.heads * prompts * min(BLOCK, setting.prompt)
    answers = shape.heads * n * setting.answer * (setting.prompt + setting.answer)
    passing = setting.number * (12.5 * prompts * shape.width + 1.25 * blocks + 4.5 * answers)
    if setting.number < FLOAT32:
        passing += FLOAT32 * prompts * (4 * shape.inner + 4 * shape.width)
    return passing
