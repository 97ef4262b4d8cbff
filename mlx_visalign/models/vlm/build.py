"""From a Hugging Face config to an mlx-vlm model. What its classes would compute wrong is refused, with the reason."""

import typing
from typing import Any

from mlx_visalign.utils.errors import UserError, plainly
from mlx_visalign.utils.schema import MAX_SIZE, WORDS, check_architecture, convert, shown

# The one value of a setting that each family's classes compute, which is also transformers' default for it.
ONLY: dict[str, dict[str, Any]] = {
    "llava": {"vision_feature_select_strategy": "default"},
    "llava_onevision": {
        "vision_feature_select_strategy": "full",
        "projector_hidden_act": "gelu",
        "vision_config.hidden_act": "gelu_pytorch_tanh",
        "text_config.use_sliding_window": False,
    },
}


def build_model(config: dict[str, Any]) -> Any:
    """An mlx-vlm LLaVA-1.5 or LLaVA-OneVision with random weights from a Hugging Face config.

    Raises `UserError` for what would be computed wrong. LLaVA-NeXT is such a case: its grids lack the tower's own size, so
    transformers cuts even a small square in two tiles and a black border, and mlx-vlm's class does not follow it there.
    """
    from mlx_vlm.models import llava, llava_onevision

    kind = config.get("model_type")
    if kind not in [*ONLY]:
        raise UserError(f"Expected model_type 'llava' or 'llava_onevision', got {kind!r}: other folders do not load.")
    for part in ("text_config", "vision_config"):
        if not isinstance(config.get(part), dict):
            raise UserError(f"The model's config.json has no {part}; a LLaVA folder has one.")
    fields = {name: config[name] for name in config.keys() & {"image_token_index", "vision_feature_layer"}}
    family = llava if kind == "llava" else llava_onevision
    try:
        _check_settings(config)
        for part, cls in (("text_config", family.TextConfig), ("vision_config", family.VisionConfig)):
            _check_types(config[part], cls, f"The model's config.json: {part}")
        text = family.TextConfig.from_dict(_text_settings(config))
        vision = family.VisionConfig.from_dict(config["vision_config"])
        _check_layer(config.get("vision_feature_layer", -2), vision.num_hidden_layers)
        return family.Model(family.ModelConfig(model_type=kind, text_config=text, vision_config=vision, **fields))
    except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"The model's config.json cannot be understood: {plainly(error)}.") from None


def _check_settings(config: dict[str, Any]) -> None:
    kind = config["model_type"]
    for name, only in ONLY[kind].items():
        part, _, field = name.rpartition(".")
        found = (config[part] if part else config).get(field, only)
        if found != only:
            raise UserError(f"config.json: {name} {found!r} is not supported for {kind}, only {only!r} is.")
    if type(token := config.get("image_token_index", 0)) is not int or not 0 <= token < MAX_SIZE:
        raise UserError(f"config.json: image_token_index should be a token's number, got {shown(token)}.")
    if type(config.get("vision_feature_layer", -2)) is not int:
        raise UserError("Only one vision_feature_layer is supported, such as -2.")
    if kind == "llava_onevision":
        size = config["vision_config"].get("image_size", 384)
        grids = config.get("image_grid_pinpoints") or [[384, 384]]  # transformers' own list begins with it
        if [size, size] not in grids:
            raise UserError(
                f"config.json: image_grid_pinpoints have no {size}x{size}, so an image would be cut into several tiles. "
                "Only one tile an image is supported."
            )


def _check_types(values: dict[str, Any], cls: type, where: str) -> None:
    """mlx-vlm takes any value of any type, and fails when it computes with it."""
    kinds = {name: kind for name, kind in typing.get_type_hints(cls).items() if kind in WORDS and values.get(name) is not None}
    check_architecture({name: convert(values[name], kind, f"{where}.{name}") for name, kind in kinds.items()}, where)


def _check_layer(layer: int, blocks: int) -> None:
    """The tower's states are those before its first block and after each."""
    if not -blocks - 1 <= layer <= blocks:
        raise UserError(f"config.json: there is no vision_feature_layer {layer} in a tower of {blocks} blocks.")


def _text_settings(config: dict[str, Any]) -> dict[str, Any]:
    """text_config with what transformers reads in other places than mlx-vlm does."""
    text = config["text_config"]
    rope = text.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise UserError(f"The model's config.json: text_config.rope_parameters must be named values, got {shown(rope)}.")
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"config.json: rope_type {rope['rope_type']!r} is not supported, only 'default' is.")
    theta = convert(
        rope.get("rope_theta", text.get("rope_theta", 10000.0)), float, "The model's config.json: text_config.rope_theta"
    )
    check_architecture({"rope_theta": theta}, "The model's config.json: text_config")
    found = text | {"rope_theta": theta}
    if config["model_type"] == "llava_onevision" and config.get("tie_word_embeddings"):
        found["tie_word_embeddings"] = True
    return found
