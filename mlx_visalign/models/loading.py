"""Model loading from JSON and safetensors, every tensor accounted for."""

from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_visalign.models import families
from mlx_visalign.utils.errors import UserError, listed, refuse
from mlx_visalign.utils.lfs_pointers import refuse_pointer


def load_model(folder: Path, config: dict[str, Any]) -> Any:
    """Load the model of a LLaVA folder.

    Tensors have Hugging Face's classic names or those of mlx-vlm's conversion. Raises `UserError` naming the tensors that
    are missing, unexpected or of another shape.
    """
    model = families.build_model(config)
    weights: dict[str, mx.array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        arrays, metadata = _read_safetensors(file)
        weights.update(arrays if metadata.get("format") == "mlx" else _channels_last(arrays))
    if not weights:
        raise UserError(f"{folder} has no .safetensors weights.")
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
        refuse_pointer(file)
        raise UserError(f"{file} is not a complete safetensors file ({error}). Download or convert it again.") from None


def _channels_last(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Convolutions in MLX's layout, OHWI; torch stores OIHW."""
    return {name: array.transpose(0, 2, 3, 1) if array.ndim == 4 else array for name, array in weights.items()}


def _quantize(model: Any, settings: Any, weights: dict[str, mx.array]) -> None:
    """Quantise exactly the layers whose stored weights are quantised."""
    if not isinstance(settings, dict) or not {"group_size", "bits"} <= settings.keys():
        raise UserError(f"config.json: quantization should have bits and group_size, got {settings!r}.")
    nn.quantize(
        model,
        group_size=settings["group_size"],
        bits=settings["bits"],
        class_predicate=lambda path, layer: hasattr(layer, "to_quantized") and f"{path}.scales" in weights,
    )


def _check_names(folder: Path, weights: dict[str, mx.array], model: Any) -> None:
    expected = {name: array.shape for name, array in dict(tree_flatten(model.parameters())).items()}
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    found = [
        listed(f"{len(names)} tensors are {what}", names)
        for what, names in (("missing", missing), ("unexpected", extra))
        if names
    ]
    if found:
        family = families.of(model)
        advice = f"Expected Hugging Face's classic names, {family.blocks}... and {family.tower}..."
        raise UserError("\n".join([f"{folder}: {found[0]}", *found[1:], advice]))
    wrong = [name for name, shape in expected.items() if weights[name].shape != shape]
    refuse([f"{folder}: {name} has shape {weights[name].shape}, but the config says {expected[name]}." for name in wrong])


def quantize_language_model(model: Any, bits: int, group_size: int) -> int:
    """Quantise the language model's linear layers and embedding in place.

    Returns the number of quantised layers.
    """
    nn.quantize(
        model.language_model,
        group_size=group_size,
        bits=bits,
        class_predicate=lambda _, layer: hasattr(layer, "to_quantized") and layer.weight.shape[-1] % group_size == 0,
    )
    quantized = (nn.QuantizedLinear, nn.QuantizedEmbedding)
    return sum(isinstance(layer, quantized) for _, layer in model.language_model.named_modules())
