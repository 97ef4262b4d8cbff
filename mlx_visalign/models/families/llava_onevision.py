"""LLaVA-OneVision, single tile: SigLIP, a two-layer projector, Qwen2.

A square image of the tower's own size that is alone in its prompt takes 2 * n * n + n tokens: its n x n patches, then those of
the grid's tiles, with `image_newline` after each row. This is transformers' rule (LlavaOnevisionModel.pack_image_features):
among image_grid_pinpoints the tower's own size fits best, whatever the others are; the grid is one tile with the image's own
pixels, and nothing is unpadded or downscaled. So the features are computed once.
Not implemented: AnyRes on images of other sizes (several tiles) and several images in a prompt (n * n + 1 each).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from jaxtyping import Float

from mlx_visalign.models.families.family import Family
from mlx_visalign.models.families.parts import QWEN2, SIGLIP, Shape
from mlx_visalign.utils.errors import UserError


@dataclass(frozen=True, eq=False)
class LlavaOnevision(Family):
    """LLaVA-OneVision on square images of the tower's size."""

    def check(self, config: Mapping[str, Any]) -> None:
        super().check(config)
        size = config["vision_config"].get("image_size", 384)
        grids = config.get("image_grid_pinpoints") or [[384, 384]]  # transformers' own list begins with it
        if [size, size] not in grids:
            raise UserError(
                f"config.json: image_grid_pinpoints has no {size}x{size}, so an image would be split into several tiles. "
                "Only one tile per image is supported."
            )

    def text_settings(self, config: dict[str, Any]) -> dict[str, Any]:
        # transformers also reads it from the top level, mlx-vlm from text_config only.
        tied = {"tie_word_embeddings": True} if config.get("tie_word_embeddings") else {}
        return super().text_settings(config) | tied

    def parameters(self, config: Mapping[str, Any]) -> dict[str, Shape]:
        return super().parameters(config) | {"image_newline": (config["text_config"]["hidden_size"],)}

    def peer_inputs(self, pixels: Float[np.ndarray, "b h w 3"]) -> dict[str, np.ndarray]:
        images = super().peer_inputs(pixels)["pixel_values"]
        sizes = np.array([images.shape[2:]] * len(images))
        return {"pixel_values": np.stack([images, images], axis=1), "image_sizes": sizes}  # complete, and as its only tile

    def image_tokens(self, model: Any) -> int:
        patches = super().image_tokens(model)
        return 2 * patches + math.isqrt(patches)

    def project(self, model: Any, features: Float[mx.array, "b t d"]) -> Float[mx.array, "b s e"]:
        patches = super().project(model, features)
        rows, count, width = patches.shape
        side = math.isqrt(count)
        ends = mx.broadcast_to(model.image_newline, (rows, side, 1, width))
        tile = mx.concatenate([patches.reshape(rows, side, side, width), ends], axis=2)
        return mx.concatenate([patches, tile.reshape(rows, -1, width)], axis=1)


FAMILY = LlavaOnevision(
    model_type="llava_onevision",
    title="LLaVA-OneVision",
    classes="llava_onevision",
    peer="LlavaOnevisionForConditionalGeneration",
    text=QWEN2,
    vision=SIGLIP,
    defaults={
        "image_token_index": 151646,
        "video_token_index": 151647,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[height * 384, width * 384] for height in range(1, 7) for width in range(1, 7)],
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
    },
    only={"vision_feature_select_strategy": "full", "projector_hidden_act": "gelu", "multimodal_projector_bias": True},
    template="onevision",
    tiny={
        "model_type": "llava_onevision",
        "image_token_index": 3,
        "video_token_index": 4,
        "image_grid_pinpoints": [[44, 88], [44, 44], [88, 44], [88, 88]],
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 96,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "image_size": 44,  # a remainder of 2, so 3 x 3 patches
            "patch_size": 14,
            "vision_use_head": False,
        },
    },
    aspects=("pad",),
    why_aspects="It was not trained on cropped images, and its own AnyRes (several tiles, a varying number of image tokens) is "
    "not implemented.",
    others=("multi_modal_projector.*", "image_newline"),
)
