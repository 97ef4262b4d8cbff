"""What a model does with pixels: the tower, and its features as word embeddings."""

import math
from typing import Any

import mlx.core as mx
from jaxtyping import Float
from mlx.utils import tree_flatten


def tower_states(model: Any, pixels: Float[mx.array, "b h w 3"]) -> Float[mx.array, "b l d"]:
    """The frozen vision tower's hidden state `vision_feature_layer`, CLIP's class token first. SigLIP has none.

    MLX is lazy, so the blocks above that layer are never computed.
    """
    *_, hidden = model.vision_tower(pixels, output_hidden_states=True)
    return hidden[model.config.vision_feature_layer]


def patches(model: Any, states: Float[mx.array, "*b l d"]) -> Float[mx.array, "*b t d"]:
    """The states that LLaVA takes for an image's features: those of its patches."""
    return states if model.config.vision_feature_select_strategy == "full" else states[..., 1:, :]


def tower_features(model: Any, pixels: Float[mx.array, "b h w 3"]) -> Float[mx.array, "b t d"]:
    """The frozen vision tower's patch features, before the projector."""
    return patches(model, tower_states(model, pixels))


def tower_weights(model: Any) -> dict[str, mx.array]:
    """The weights that `tower_states` depends on, by the names of Hugging Face's vision models."""
    tower = model.vision_tower.vision_model
    blocks = range(len(tower.encoder.layers) + 1)[model.config.vision_feature_layer]
    used = ("embeddings.", "pre_layrnorm.", *(f"encoder.layers.{block}." for block in range(blocks)))
    return {name: array for name, array in dict(tree_flatten(tower.parameters())).items() if name.startswith(used)}


def image_tokens(model: Any) -> int:
    """How many places an image takes in a prompt: s of `project`."""
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    return side * side if model.config.model_type == "llava" else 2 * side * side + side


def project(model: Any, features: Float[mx.array, "b t d"]) -> Float[mx.array, "b s e"]:
    """Patch features as the word embeddings that stand for an image: the t = n * n patches in LLaVA-1.5.

    In LLaVA-OneVision s = 2 * n * n + n: the whole image's patches, then those of the grid's tiles, with `image_newline`
    after each row. This is transformers' rule (LlavaOnevisionModel.pack_image_features) for an image that is alone in its
    prompt and a square of the tower's own size: among image_grid_pinpoints that size fits best, whatever else they hold;
    the grid is one tile with the image's own pixels, nothing is unpadded or made smaller. So the features are computed once.
    Not done: AnyRes on images of other sizes (several tiles, s varies) and several images in a prompt (n * n + 1 each).
    """
    dtype = model.multi_modal_projector.linear_1.bias.dtype
    patches = model.multi_modal_projector(features.astype(dtype))
    return patches if model.config.model_type == "llava" else _with_tile(patches, model.image_newline)


def _with_tile(patches: Float[mx.array, "b t e"], newline: Float[mx.array, " e"]) -> Float[mx.array, "b s e"]:
    rows, count, width = patches.shape
    side = math.isqrt(count)
    ends = mx.broadcast_to(newline, (rows, side, 1, width))
    tile = mx.concatenate([patches.reshape(rows, side, side, width), ends], axis=2)
    return mx.concatenate([patches, tile.reshape(rows, -1, width)], axis=1)
