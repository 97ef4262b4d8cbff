"""The one bridge to mlx-vlm: its model classes, with our own loading and our own merge of image features.

What we do ourselves, and why (mlx-vlm 0.7.10; each has a test against transformers in tests/test_vlm.py):
- config: it ignores transformers 5's `rope_parameters` and silently uses theta 10000.
- loading: `mlx_vlm.load` runs Python that a model folder brings (`model_file`); its LLaVA processor fails with
  transformers 5. We read JSON and safetensors only.
- merge: its merge assumes one row; with two, every row gets the last row's image.
- mask: its LLaVA uses any given mask instead of the causal one. We never pass a padding mask to the model's own
  forward: the fold (fold.py) passes complete masks to the layers.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float, Integer
from mlx.utils import tree_flatten

from mlx_visalign.errors import UserError


@dataclass(frozen=True)
class Decoder:
    """A language model as the fold sees it: embedding, blocks (`block(x, mask, cache)`), final norm and head."""

    embed: Any
    layers: list[Any]
    norm: Any
    head: Any


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder; a missing or damaged file is the user's to mend."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is missing: is {path.parent} the right folder?") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object, not {type(value).__name__}.")
    return value


def build_model(config: dict[str, Any]) -> Any:
    """An mlx-vlm LLaVA with random weights from a Hugging Face config."""
    from mlx_vlm.models.llava import Model, ModelConfig, TextConfig, VisionConfig

    if config.get("model_type") != "llava":
        raise UserError(f"Expected model_type 'llava', got {config.get('model_type')!r}: only LLaVA-1.5 folders load so far.")
    for part in ("text_config", "vision_config"):
        if not isinstance(config.get(part), dict):
            raise UserError(f"The model's config.json has no {part}; a LLaVA-1.5 folder has one.")
    if config.get("vision_feature_select_strategy", "default") != "default":
        raise UserError("Only vision_feature_select_strategy 'default' (patches without the class token) is supported.")
    if not isinstance(config.get("vision_feature_layer", -2), int):
        raise UserError("Only one vision_feature_layer is supported, such as -2.")
    fields = {name: config[name] for name in config.keys() & {"image_token_index", "vision_feature_layer"}}
    try:
        text = dict(config["text_config"])
        rope = text.get("rope_parameters") or {}
        text["rope_theta"] = rope.get("rope_theta", text.get("rope_theta", 10000.0))
        parts = {"text_config": TextConfig.from_dict(text), "vision_config": VisionConfig.from_dict(config["vision_config"])}
        return Model(ModelConfig(model_type="llava", **parts, **fields))
    except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"The model's config.json cannot be understood: {error}.") from None


def load_model(folder: Path, config: dict[str, Any]) -> Any:
    """Read a LLaVA-1.5 folder (classic Hugging Face names, or mlx-vlm's own conversion of it), all tensors accounted for.

    Raises `UserError` naming the first missing and the first unexpected tensors.
    """
    model = build_model(config)
    weights: dict[str, mx.array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        arrays, metadata = _read_safetensors(file)
        weights.update(arrays if metadata.get("format") == "mlx" else _channels_last(arrays))
    if not weights:
        raise UserError(f"{folder} holds no .safetensors weights.")
    weights = {name: array for name, array in weights.items() if not name.endswith(("rotary_emb.inv_freq", "position_ids"))}
    if "quantization" in config:
        _quantize(model, config["quantization"], weights)
    _check_names(folder, weights, model)
    model.load_weights(list(weights.items()), strict=True)
    model.eval()
    return model


def _read_safetensors(file: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    try:
        return cast(tuple[dict[str, mx.array], dict[str, str]], mx.load(str(file), return_metadata=True))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{file} is not a whole safetensors file ({error}). Download or convert it again.") from None


def _channels_last(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Convolutions are stored OIHW by torch and OHWI by MLX."""
    return {name: array.transpose(0, 2, 3, 1) if array.ndim == 4 else array for name, array in weights.items()}


def _quantize(model: Any, settings: Any, weights: dict[str, mx.array]) -> None:
    """Swap in quantised layers exactly where the file holds quantised weights."""
    if not isinstance(settings, dict) or not {"group_size", "bits"} <= settings.keys():
        raise UserError(f"config.json: quantization should say bits and group_size, got {settings!r}.")
    nn.quantize(
        model,
        group_size=settings["group_size"],
        bits=settings["bits"],
        class_predicate=lambda path, layer: hasattr(layer, "to_quantized") and f"{path}.scales" in weights,
    )


def _check_names(folder: Path, weights: dict[str, mx.array], model: Any) -> None:
    expected = {name: array.shape for name, array in dict(tree_flatten(model.parameters())).items()}
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or extra:
        raise UserError(
            f"{folder}: {len(missing)} tensors are missing (first: {missing[:3]}) and {len(extra)} are unexpected "
            f"(first: {extra[:3]}). Expected the classic names, language_model.model... and vision_tower.vision_model..."
        )
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise UserError(f"{folder}: {name} has shape {weights[name].shape}, the config says {shape}.")


def quantize_language_model(model: Any, bits: int, group_size: int) -> int:
    """Quantise the language model's linear layers and embedding in place; return how many were."""
    nn.quantize(
        model.language_model,
        group_size=group_size,
        bits=bits,
        class_predicate=lambda _, layer: hasattr(layer, "to_quantized") and layer.weight.shape[-1] % group_size == 0,
    )
    quantized = (nn.QuantizedLinear, nn.QuantizedEmbedding)
    return sum(isinstance(layer, quantized) for _, layer in model.language_model.named_modules())


def decoder(model: Any) -> Decoder:
    """The language model's parts. The head is the embedding itself where the two are tied."""
    language = model.language_model
    head = language.model.embed_tokens.as_linear if language.config.tie_word_embeddings else language.lm_head
    return Decoder(language.model.embed_tokens, language.model.layers, language.model.norm, head)


def tower_features(model: Any, pixels: Float[mx.array, "b h w 3"]) -> Float[mx.array, "b t d"]:
    """The frozen vision tower's patch features, before the projector: hidden state `vision_feature_layer`, without CLS.

    MLX is lazy, so the blocks above that layer are never computed.
    """
    *_, hidden = model.vision_tower(pixels, output_hidden_states=True)
    return hidden[model.vision_feature_layer][:, 1:]


def project(model: Any, features: Float[mx.array, "b t d"]) -> Float[mx.array, "b t e"]:
    """Patch features as word embeddings."""
    dtype = model.multi_modal_projector.linear_1.bias.dtype
    return model.multi_modal_projector(features.astype(dtype))


def merge(
    embeds: Float[mx.array, "b l e"], ids: Integer[mx.array, "b l"], image_token: int, images: Float[mx.array, "n t e"]
) -> Float[mx.array, "b l e"]:
    """Put the features of all images, in reading order over rows, where the image tokens stand.

    Raises `UserError` unless there are exactly n * t image tokens.
    """
    here = ids == image_token
    count, features = int(here.sum()), images.shape[0] * images.shape[1]
    if count != features:
        raise UserError(f"{count} image tokens for {images.shape[0]} images of {images.shape[1]} features each.")
    index = mx.maximum(mx.cumsum(here.flatten().astype(mx.int32)) - 1, 0).reshape(ids.shape)
    flat = images.reshape(-1, images.shape[-1]).astype(embeds.dtype)
    return mx.where(here[..., None], flat[index], embeds)
