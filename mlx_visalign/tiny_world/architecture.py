"""Hugging Face configs of the tiny CLIP and LLaVA.

The input width of every linear layer is a multiple of 64, so that all can be quantised to 4 bits in groups of 64.
"""

from typing import Any

from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from mlx_visalign.data.prompt_template import IMAGE
from mlx_visalign.tiny_world.scenes import IMAGE_SIZE
from mlx_visalign.tiny_world.tokenizer import CLIP_LENGTH

PATCH_SIZE = 8
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
PROJECTION = 128

_TOWER = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": PROJECTION,
}
_VISION = {
    **_TOWER,
    "model_type": "clip_vision_model",
    "num_hidden_layers": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
}


def clip_config(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        **_TOWER,
        "model_type": "clip_text_model",
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CLIP_LENGTH,
        **special,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": PROJECTION,
        "text_config": text,
        "vision_config": _VISION,
        "torch_dtype": "float16",
    }


def llava_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    text = {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        # Both spellings: transformers 5 reads the second, older versions and mlx-vlm the first.
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": text,
        "vision_config": _VISION,
        "image_token_index": tokenizer.convert_tokens_to_ids(IMAGE),
        "image_seq_length": IMAGE_TOKENS,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
        "torch_dtype": "float16",
        "visalign": {"template": "vicuna_v1", "aspect": "pad"},
    }
