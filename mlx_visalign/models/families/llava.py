"""LLaVA-1.5: CLIP, a two-layer projector, and Llama.

An image has a fixed number of tokens, one for each of its n x n patches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_visalign.data.prompt_template import IMAGE
from mlx_visalign.models.families.family import Family
from mlx_visalign.models.families.parts import CLIP, LLAMA


@dataclass(frozen=True, eq=False)
class Llava(Family):
    """LLaVA-1.5, with the settings of transformers' processor."""

    def processor(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """processor_config.json for transformers' LlavaProcessor.

        Without patch_size the processor fails; without the additional image token its count is one too low.
        """
        return {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE,
            "patch_size": config["vision_config"]["patch_size"],
            "num_additional_image_tokens": 1,  # the class token, which "default" drops again
            "vision_feature_select_strategy": config["vision_feature_select_strategy"],
        }


FAMILY = Llava(
    model_type="llava",
    title="LLaVA-1.5",
    classes="llava",
    peer="LlavaForConditionalGeneration",
    text=LLAMA,
    vision=CLIP,
    defaults={
        "image_token_index": 32000,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
    },
    only={"vision_feature_select_strategy": "default", "projector_hidden_act": "gelu", "multimodal_projector_bias": True},
    template="vicuna_v1",
    tiny={
        "model_type": "llava",
        "image_token_index": 3,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": {
            "model_type": "llama",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 96,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
            "projection_dim": 64,
        },
    },
)
