"""Training memory estimated from config.json, without weights.

Every array that training keeps for the backward pass is counted from the shapes; what a single layer needs temporarily is a
formula fitted to `mx.get_peak_memory`. tests/preflight/test_memory.py keeps both within 15 % of measured peaks. Counted are the
weights, the adapter with AdamW's state, the activations over the prefix cache (inference/prefix_cache.py), the logits of the
answers, the feature cache and a CLIP that scores answers. Not counted: the interpreter (0.3 GB) and other programs. For the
stages that sample and score answers see `workload`.
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
    """A model's dimensions that determine memory.

    image_bytes  bytes of an image's features in the cache (policy.FeatureCache), in float16, with the class token's
    matrices     weights of the language model that can be quantised (its linear layers, embedding and head)
    others       all other weights: norms, projector, vision tower
    tower        the vision tower's width, inner width, image size, patch size, and the number of its blocks in use
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
    """Settings that determine a training's memory.

    bits         bits of a weight of the language model: 4 or 8 (quantised), 16 or 32
    rank         rank of the LoRA round that is trained
    past_rank    total rank of the frozen rounds before it
    prompt       tokens of a prompt, image tokens included
    answer       tokens of the longest answer
    batch        prompts in a forward pass of the training
    copies       answers per prompt in it: two in DPO, three in mDPO, one in PPO
    prefills     prefills per prompt in it: two in mDPO, otherwise one
    checkpoint   whether layers are recomputed in the backward pass
    images       images whose features are cached
    cache_gb     the cache's limit in GB
    number       bytes of an activation: 2, or 4 in float32
    scorer       bytes of the CLIP that scores answers, 0 if there is none
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
    scorer: float = 0.0


def shape_of(model: Any) -> Shape:
    """The shape of a model; weights need not be loaded."""
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
    """A model's shape, bits per weight and bytes per activation.

    Reads config.json alone: MLX is lazy, so the model that is built here never allocates weights.
    """
    config = read_json(folder / "config.json")
    shape = shape_of(families.build_model(config))
    dtype = config.get("dtype") or config.get("torch_dtype") or "float16"
    number = FLOAT32 if dtype == "float32" else 2
    return shape, config.get("quantization", {}).get("bits", 8 * number), number


def weights_bytes(shape: Shape, setting: Setting) -> float:
    """Bytes of the model's weights.

    Each group of 64 quantised weights also has a scale and a bias.
    """
    each = setting.bits / 8
    if setting.bits < 16:
        each += 2 * setting.number / QUANTISED_GROUP
    return shape.matrices * each + shape.others * setting.number


def adapter_bytes(shape: Shape, rank: int) -> float:
    """Bytes of a LoRA adapter.

    A and B on the seven linear layers of every block, in float32 (lora.attach): rank x (inputs + outputs) each.
    """
    width, inner, kv = shape.width, shape.inner, shape.kv_width
    return FLOAT32 * rank * shape.layers * (2 * (width + width) + 2 * (width + kv) + 3 * (width + inner))


def checkpoints_bytes(shape: Shape, rank: int) -> float:
    """Disk space for checkpoints.

    The checkpoints kept plus the one being written (training/checkpoint.py), each with weights and Adam's two moments.
    """
    return (KEPT + 1) * 3 * adapter_bytes(shape, rank)


def clip_bytes(shape: Shape, config: CLIPConfig, shares: bool) -> float:
    """Bytes of a CLIP in float32.

    `shares`: if the towers are alike, it continues from LLaVA's features and drops its own blocks.
    """
    weights = FLOAT32 * sum(
        array.size for array in dict(tree_flatten(CLIP(config).parameters())).values()
    )  # lazy: nothing is allocated
    *sizes, blocks = shape.tower
    vision = config.vision
    if shares and sizes == [vision.hidden_size, vision.intermediate_size, vision.image_size, vision.patch_size]:
        width, inner = vision.hidden_size, vision.intermediate_size
        # Four square matrices and the two of the MLP, their biases, and two norms of two vectors each.
        weights -= FLOAT32 * blocks * (4 * width**2 + 2 * width * inner + 9 * width + inner)
    return weights


def staying_bytes(shape: Shape, setting: Setting) -> float:
    """Bytes in memory all the time.

    Weights, earlier LoRA rounds, cached features and the scorer; without the state of the adapter in training.
    """
    features = min(setting.images * shape.image_bytes, setting.cache_gb * 1e9)
    return weights_bytes(shape, setting) + adapter_bytes(shape, setting.past_rank) + features + setting.scorer


def training_bytes(shape: Shape, setting: Setting) -> float:
    """Peak bytes of an update.

    What stays in memory plus the larger of two temporary needs: the logits, or the backward pass of one layer. What stays:
    weights; the adapter, its gradient and Adam's two moments (trainer._Groups); and what the forward pass keeps for the
    backward pass. That is, for each of the T = b prompt + n answer tokens of n answers and their b prompts, in every layer:
    without checkpointing  `_kept_numbers`; but for prompts in the last layer, which is run for their last tokens alone
                           (prefix_cache.prefill), no more than with checkpointing
    with checkpointing     a layer's input and the keys and values it returns (prefix_cache._run_layer), plus everything in
                           one layer, for one variant of the image at a time
    """
    width, kv, n = shape.width, shape.kv_width, setting.copies * setting.batch
    prompts = setting.prefills * setting.batch * setting.prompt
    tokens = prompts + n * setting.answer
    staying = staying_bytes(shape, setting) + 4 * adapter_bytes(shape, setting.rank)
    # In float32: the logits, plus either their exponentials or their gradient (logprobs.token_logps).
    logits = n * setting.answer * shape.vocabulary * (2.2 * FLOAT32 + (setting.number if setting.number < FLOAT32 else 0))
    inputs, whole = setting.number * (width + 2 * kv), setting.number * _kept_numbers(shape)
    passing = _passing_bytes(shape, setting)
    if setting.checkpoint:
        return staying + shape.layers * tokens * inputs + max(logits, tokens / setting.prefills * whole + passing)
    return staying + (shape.layers * tokens - prompts) * whole + prompts * inputs + max(logits, passing)


def _kept_numbers(shape: Shape) -> int:
    """Numbers a layer keeps per token: input, queries, keys, values, attention output, residual sum, gate and up."""
    return 4 * shape.width + 2 * shape.kv_width + 2 * shape.inner


def _passing_bytes(shape: Shape, setting: Setting) -> float:
    """Temporary bytes in one layer's backward pass: gradients and recomputed values. Fitted on CPUs.

    Attention scores of prompts are computed block by block, those of answers all at once. LoRA's inputs are cast to float32.
    """
    prompts, n = setting.batch * setting.prompt, setting.copies * setting.batch
    blocks = shape.heads * prompts * min(BLOCK, setting.prompt)
    answers = shape.heads * n * setting.answer * (setting.prompt + setting.answer)
    passing = setting.number * (12.5 * prompts * shape.width + 1.25 * blocks + 4.5 * answers)
    if setting.number < FLOAT32:
        passing += FLOAT32 * prompts * (4 * shape.inner + 4 * shape.width)
    return passing
