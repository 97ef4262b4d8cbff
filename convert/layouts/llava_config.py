"""Completes and checks a LLaVA's Hugging Face config.json.

Defaults of transformers and mlx-vlm differ (rms_norm_eps, vocab_size, rope_theta ...), so all are written out. mlx-vlm
ignores many settings; those it would compute differently are refused, since the converted model would load and answer
wrongly.
"""

from typing import Any

from mlx_visalign.convert.io.folder import without_code
from mlx_visalign.models import families
from mlx_visalign.models.families.family import Family
from mlx_visalign.models.families.parts import Part
from mlx_visalign.utils.errors import UserError

ROPE_THETA = 10000.0
REFUSED = {
    "llava_next": "mlx-vlm's LLaVA-NeXT does not cut, unpad and join an image's tiles as transformers does, so its answers "
    "would be wrong. Use LLaVA-1.5 or LLaVA-OneVision.",
    "llava_llama": "This is the authors' layout: use `visalign convert llava_original`.",
}
MAX_LAYERS, MAX_SIZE = 1000, 1 << 24  # more than any model has; a damaged config must not exhaust memory
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
    """A Hugging Face config.json with every default filled in.

    MLX and transformers both read it correctly. Raises `UserError` for an unsupported model type, and for settings that MLX
    would ignore.
    """
    config = without_code(config)
    family = _family(config)
    text, vision = _part(config, "text_config", family.text), _part(config, "vision_config", family.vision)
    found = _with_defaults(config, family) | {"text_config": text, "vision_config": vision}
    family.check_only(found)
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
    return found


def _family(config: dict[str, Any]) -> Family:
    kind = "llava_llama" if "mm_vision_tower" in config else config.get("model_type")
    if not isinstance(kind, str) or kind not in families.names():
        reason = REFUSED.get(str(kind), f"Supported are {' and '.join(families.names())}.")
        raise UserError(f"config.json: the model type is {kind!r}. {reason}")
    check_unquantised(config)
    return families.find(kind)


def check_unquantised(config: dict[str, Any]) -> None:
    """Refuse quantised weights, by MLX or anything else."""
    parts = [config, *(config[name] for name in ("text_config", "vision_config") if isinstance(config.get(name), dict))]
    if any(part.get(name) for part in parts for name in ("quantization", "quantization_config", "compression_config")):
        raise UserError("config.json: the weights are quantised, which cannot be undone. Convert the original weights.")


def _part(config: dict[str, Any], name: str, kind: Part) -> dict[str, Any]:
    part = config.get(name)
    if not isinstance(part, dict):
        raise UserError(f"config.json has no {name}, which every Hugging Face LLaVA has.")
    if part.get("model_type", kind.model_type) != kind.model_type:
        raise UserError(f"config.json: {name} has the type {part['model_type']!r}; only {kind.model_type!r} is supported.")
    return _with_defaults(part, kind)


def _with_defaults(section: dict[str, Any], kind: Family | Part) -> dict[str, Any]:
    """The section with its missing values filled in."""
    unsaid = {name: value for name, value in kind.defaults.items() if section.get(name) is None}
    return {"model_type": kind.model_type} | section | unsaid


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
