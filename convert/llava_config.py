"""config.json of a LLaVA: what a Hugging Face one leaves out is spelled out, what MLX would compute otherwise is refused.

transformers' defaults and mlx-vlm's differ (rms_norm_eps, vocab_size, rope_theta ...), and mlx-vlm ignores much of what a
config may ask for. A model that would load and answer wrongly must not come out of a conversion.
"""

from typing import Any

from mlx_visalign.convert.folder import without_code
from mlx_visalign.utils.errors import UserError

ROPE_THETA = 10000.0
# The defaults of transformers' config classes, 4.31 to 5.23, as far as they shape the model.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llava": {
        "image_token_index": 32000,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
    },
    "llava_onevision": {
        "image_token_index": 151646,
        "video_token_index": 151647,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[height * 384, width * 384] for height in range(1, 7) for width in range(1, 7)],
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
    },
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
    },
    "clip_vision_model": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "siglip_vision_model": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "vision_use_head": True,
    },
}
PARTS = {
    "llava": {"text_config": "llama", "vision_config": "clip_vision_model"},
    "llava_onevision": {"text_config": "qwen2", "vision_config": "siglip_vision_model"},
}
# The one value of a setting that mlx-vlm's classes compute, whatever a config says.
ONLY: dict[str, dict[str, Any]] = {
    "llava": {"vision_feature_select_strategy": "default", "projector_hidden_act": "gelu", "multimodal_projector_bias": True},
    "llava_onevision": {
        "vision_feature_select_strategy": "full",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
    },
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "qwen2": {"hidden_act": "silu", "use_sliding_window": False},
    "clip_vision_model": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip_vision_model": {"hidden_act": "gelu_pytorch_tanh", "vision_use_head": False},
}
REFUSED = {
    "llava_next": "mlx-vlm's LLaVA-NeXT does not cut, unpad and join an image's tiles as transformers does, so its answers "
    "would be wrong. Use LLaVA-1.5 or LLaVA-OneVision.",
    "llava_llama": "This is the authors' own layout: use `visalign convert llava_original`.",
}
MAX_LAYERS, MAX_SIZE = 1000, 1 << 24  # beyond what any model has; a damaged config must not fill the memory
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_channels",
    "image_size",
    "patch_size",
)


def complete(config: dict[str, Any]) -> dict[str, Any]:
    """A Hugging Face config.json with every default spelled out, which MLX and transformers both read right.

    Raises `UserError` for other models than LLaVA-1.5 and LLaVA-OneVision, and for settings that MLX would ignore.
    """
    config = without_code(config)
    kind = _check_kind(config)
    found = _with_defaults(config, kind)
    text, vision = (_part(config, name, expected) for name, expected in PARTS[kind].items())
    text["num_key_value_heads"] = text.get("num_key_value_heads") or text["num_attention_heads"]
    tied = bool(text["tie_word_embeddings"] or found.get("tie_word_embeddings"))
    text["tie_word_embeddings"] = found["tie_word_embeddings"] = tied
    _check_sizes(text, "text_config")
    _check_sizes(vision, "vision_config")
    if text.get("head_dim") not in (None, text["hidden_size"] / text["num_attention_heads"]):
        raise UserError(f"config.json: head_dim {text['head_dim']!r} is not hidden_size / num_attention_heads, as MLX assumes.")
    if not isinstance(found["vision_feature_layer"], int):
        raise UserError(f"config.json: only one vision_feature_layer is supported, not {found['vision_feature_layer']!r}.")
    _spell_rope(text)
    return found | {"text_config": text, "vision_config": vision}


def _check_kind(config: dict[str, Any]) -> str:
    kind = "llava_llama" if "mm_vision_tower" in config else config.get("model_type")
    if not isinstance(kind, str) or kind not in PARTS:
        reason = REFUSED.get(str(kind), f"Converted are {' and '.join(PARTS)}.")
        raise UserError(f"config.json: the model is of the type {kind!r}. {reason}")
    check_unquantised(config)
    return kind


def check_unquantised(config: dict[str, Any]) -> None:
    """Refuse weights that are quantised, by MLX or by anything else."""
    parts = [config, *(config[name] for name in ("text_config", "vision_config") if isinstance(config.get(name), dict))]
    if any(part.get(name) for part in parts for name in ("quantization", "quantization_config", "compression_config")):
        raise UserError("config.json: the weights are quantised, and what that lost does not come back. Convert the originals.")


def _part(config: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    part = config.get(name)
    if not isinstance(part, dict):
        raise UserError(f"config.json has no {name}; a Hugging Face LLaVA has one.")
    if part.get("model_type", kind) != kind:
        raise UserError(f"config.json: {name} is of the type {part['model_type']!r}; supported here is {kind!r}.")
    return _with_defaults(part, kind)


def _with_defaults(part: dict[str, Any], kind: str) -> dict[str, Any]:
    """The section with what is not said in it, and everything in it a value that MLX computes with."""
    unsaid = {name: value for name, value in DEFAULTS[kind].items() if part.get(name) is None}
    found = {"model_type": kind} | part | unsaid
    for name, only in ONLY[kind].items():
        if found[name] != only:
            raise UserError(f"config.json: {name} {found[name]!r} is not supported for {kind}: MLX would compute {only!r}.")
    return found


def _check_sizes(part: dict[str, Any], where: str) -> None:
    limits = {name: MAX_SIZE for name in SIZES if name in part} | {"num_hidden_layers": MAX_LAYERS}
    for name, limit in limits.items():
        value = part[name]
        if type(value) is not int or not 1 <= value <= limit:
            raise UserError(f"config.json: {where}.{name} should be a whole number from 1 to {limit}, not {value!r}.")
    if part["hidden_size"] % part["num_attention_heads"]:
        raise UserError(f"config.json: {where}.hidden_size is not a multiple of num_attention_heads.")


def _spell_rope(text: dict[str, Any]) -> None:
    """The rotary base in both spellings: transformers >= 5 reads rope_parameters, older ones and mlx-vlm rope_theta."""
    rope = text.get("rope_parameters") or {}
    scaling = text.pop("rope_scaling", None) or {}
    if not isinstance(rope, dict) or not isinstance(scaling, dict):
        raise UserError("config.json: rope_parameters and rope_scaling should be objects.")
    for found in (rope, scaling):
        kind = found.get("rope_type", found.get("type", "default"))
        if kind != "default" or found.get("partial_rotary_factor", 1) != 1:
            raise UserError(f"config.json: rotary positions of the type {kind!r} are not supported, only 'default' is.")
    theta = rope.get("rope_theta") or text.get("rope_theta") or ROPE_THETA
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not theta > 0:
        raise UserError(f"config.json: rope_theta should be a number above 0, not {theta!r}.")
    text["rope_theta"] = theta
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
