"""Adapter folders: `adapters.safetensors` and `adapter_config.json` in the layout of mlx-lm and mlx-vlm.

Tensor names and `keys` are fully qualified, which is what mlx-vlm loads. All rounds are one tensor pair per layer, their
ranks concatenated and each scale folded into its B, so the stored scale is 1. Our own fields (round ranks, template,
aspect, base fingerprint) stand beside the standard ones; other loaders ignore them.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from mlx_visalign.errors import UserError
from mlx_visalign.files import replacing, write_atomically, writing
from mlx_visalign.lora import adapters
from mlx_visalign.vlm import read_json

Slices = dict[str, list[tuple[mx.array, mx.array]]]
WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"


def fingerprint(folder: Path) -> str:
    """sha256 over the model folder's safetensors files, in name order: which base an adapter belongs to."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def save_adapter(model: Any, folder: Path, about: dict[str, Any]) -> None:
    """Write the model's adapter, every round of it. `about` adds fields of ours to the config."""
    layers = adapters(model)
    tensors: dict[str, mx.array] = {}
    for name, layer in layers.items():
        slices = layer.slices(layer.rounds_on)
        tensors[f"{name}.lora_a"] = mx.concatenate([a for a, _ in slices], axis=1)
        tensors[f"{name}.lora_b"] = mx.concatenate([b for _, b in slices], axis=0)
    first = next(iter(layers.values()))
    ranks = [a.shape[1] for a, _ in first.slices(first.rounds_on)]
    config = {
        "fine_tune_type": "lora",
        "num_layers": -1,
        "lora_parameters": {"rank": sum(ranks), "scale": 1.0, "dropout": 0.0, "keys": sorted(layers)},
        "round_ranks": ranks,
        **about,
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    with replacing(folder / WEIGHTS) as unfinished:
        mx.save_safetensors(str(unfinished), tensors, metadata={"format": "mlx"})


def read_adapter(folder: Path) -> tuple[dict[str, Any], Slices]:
    """The config of an adapter folder, and for each layer the (A, scale * B) slice of every round."""
    config = read_json(folder / CONFIG)
    if "lora_parameters" not in config:
        raise UserError(f"{folder / CONFIG} has no lora_parameters: expected an adapter of mlx-lm, mlx-vlm or this package.")
    scale, rank = float(config["lora_parameters"]["scale"]), int(config["lora_parameters"]["rank"])
    ranks = config.get("round_ranks", [rank])
    tensors = _read_tensors(folder / WEIGHTS)
    names = sorted({name.rsplit(".lora_", 1)[0] for name in tensors})
    slices: Slices = {}
    for name in names:
        try:
            a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        except KeyError as missing:
            raise UserError(f"{folder / WEIGHTS}: {missing} is missing.") from None
        if a.shape[1] != sum(ranks) or b.shape[0] != sum(ranks):
            raise UserError(f"{folder}: {name} has rank {a.shape[1]}, the config says {sum(ranks)}.")
        at = 0
        slices[name] = []
        for width in ranks:
            slices[name].append((a[:, at : at + width], scale * b[at : at + width]))
            at += width
    return config, slices


def _read_tensors(path: Path) -> dict[str, mx.array]:
    try:
        with safe_open(path, framework="numpy") as file:  # the Rust reader checks the header more strictly than mx.load
            return {name: mx.array(file.get_tensor(name)).astype(mx.float32) for name in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as an adapter ({error}).") from None
