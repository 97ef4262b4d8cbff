"""Adapter folders in the layout of mlx-lm and mlx-vlm.

A folder has `adapters.safetensors` and `adapter_config.json`. Tensor names and `keys` are fully qualified, which is what
mlx-vlm loads. All rounds are one tensor pair per layer, their ranks concatenated and each scale multiplied into its B, so
the stored scale is 1. Our own fields (round ranks, template, aspect, fingerprints) are added to the standard ones; other
loaders ignore them.
"""

import hashlib
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from safetensors import SafetensorError, safe_open

from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError, listed
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.formatting import counted
from mlx_visalign.utils.lfs_pointers import refuse_pointer
from mlx_visalign.utils.schema import build, convert, shown

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
BLOCK = re.compile(r"(.*\.layers\.)(\d{1,4})\.(.+)")
Slices = list[tuple[mx.array, mx.array]]  # (A, scale * B) of every round of a layer
STATED = ("template", "aspect", "source_fingerprint")  # in config.json's "visalign"


def fingerprint(folder: Path) -> str:
    """SHA-256 of a model folder's safetensors files.

    The files are read in name order. The fingerprint identifies the base model of an adapter.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def stated(folder: Path) -> dict[str, str]:
    """The fields under "visalign" in a model's config.json.

    Template, aspect and source fingerprint, each if present.
    """
    ours = read_json(folder / "config.json").get("visalign", {})
    if not isinstance(ours, dict) or not all(isinstance(ours.get(name, ""), str) for name in STATED):
        raise UserError(f"{folder}/config.json: visalign should contain the texts {', '.join(STATED)}, got {shown(ours)}.")
    return {name: ours[name] for name in STATED if name in ours}


def check_base(folder: Path, config: Mapping[str, Any], here: Mapping[str, str], source: Callable[[], str]) -> None:
    """Refuse an adapter that was trained on another model.

    folder, config  the adapter's
    here            this model's template and aspect, if known, and base_fingerprint
    source          returns the fingerprint of the weights that the model was converted from, the same in every precision;
                    called only if the weights differ, since it may have to be computed. The same source gets a note
    """
    for name in ("template", "aspect"):
        if name in here and config.get(name, here[name]) != here[name]:
            raise UserError(f"{folder}: this adapter was trained with {name} {config[name]!r}, the model has {here[name]!r}.")
    if config.get("base_fingerprint") in (None, here["base_fingerprint"]):
        return
    trained_on = config.get("source_fingerprint", config["base_fingerprint"])
    if trained_on != source():
        raise UserError(
            f"{folder}: this adapter was trained on another model: the source weights differ. Use it with the model it was "
            "trained on."
        )
    say(f"{folder}: this adapter was trained on another precision of the same source weights.")


@dataclass(frozen=True)
class Parameters:
    """The `lora_parameters` that an adapter's config must have."""

    rank: int
    scale: float


def read_config(folder: Path) -> tuple[dict[str, Any], Parameters, list[int]]:
    """An adapter's config, its LoRA parameters and its rounds' ranks.

    Raises `UserError` for another kind of adapter and for ranks that contradict each other.
    """
    config = read_json(folder / CONFIG)
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise UserError(other_form(folder, config))
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        raise UserError(f"{folder / CONFIG}: fine_tune_type is {shown(kind)}, but only LoRA adapters are supported.")
    known = {name: parameters[name] for name in ("rank", "scale") if name in parameters}
    found = build(Parameters, known, str(folder / CONFIG))
    ranks = convert(config.get("round_ranks", [found.rank]), list[int], f"{folder / CONFIG}: round_ranks")
    if min(ranks, default=0) < 1 or sum(ranks) != found.rank:
        raise UserError(f"{folder / CONFIG}: the rounds' ranks {ranks} do not add up to the rank {found.rank}.")
    return config, found, ranks


def other_form(folder: Path, config: Mapping[str, Any]) -> str:
    """The error for an adapter in another layout.

    It says how to convert the adapter, if that is possible.
    """
    command = f"`visalign convert peft --adapter-path {shlex.quote(str(folder))} --output ADAPTER"
    if "peft_type" in config:
        return f"{folder} is a PEFT adapter: convert it with {command}`, then use ADAPTER instead."
    if is_older(config):
        rank, alpha = config["rank"], config["alpha"]
        return (
            f"{folder} is an adapter in mlx-vlm's older form, which does not record its scale: mlx-vlm up to 0.4.4 multiplied "
            f"by alpha, {alpha:g}, and from 0.5 on by alpha / rank, {alpha / rank:g}. Convert it with "
            f"{command} --scale {alpha:g}` or the other number, then use ADAPTER instead."
        )
    return f"{folder / CONFIG} has no lora_parameters: expected an adapter from mlx-lm, mlx-vlm or this package."


def is_older(config: Mapping[str, Any]) -> bool:
    """Whether a config is in mlx-vlm's older form.

    It has rank and alpha at the top level, and its matrices are called A and B.
    """
    rank, alpha = config.get("rank"), config.get("alpha")
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    return "lora_parameters" not in config and type(rank) is int and rank > 0 and is_number


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Slices]]:
    """An adapter folder's config and its layers' matrices.

    Each layer has the (A, scale * B) slice of every round, in float32. Raises `UserError` if the two files do not match or
    contain anything but finite matrices.
    """
    config, found, ranks = read_config(folder)
    stored = _read_tensors(folder / WEIGHTS)
    tensors = {full_name(name): array for name, array in stored.items()}
    names = check_listed(config, tensors, folder)
    if tensors.keys() != stored.keys():
        say(f"{folder}: this adapter was trained on a language model alone, whose weights differ from a LLaVA's.")
    return config, {name: _split(name, tensors, ranks, found.scale, folder / WEIGHTS) for name in names}


def full_name(stored: str) -> str:
    """A tensor's full name in a LLaVA.

    Adapters that mlx-lm trained on a language model alone lack the prefix `language_model.`.
    """
    return f"language_model.{stored}" if stored.startswith("model.layers.") else stored


def is_whole(config: Mapping[str, Any]) -> bool:
    """Whether an adapter must cover every linear layer.

    It must if its config lists no layers and no number of blocks; mlx-lm can also adapt only the last blocks.
    """
    return "keys" not in config["lora_parameters"] and config.get("num_layers", -1) in (-1, None)


def check_listed(config: Mapping[str, Any], tensors: Iterable[str], folder: Path) -> list[str]:
    """The layers of `tensors`, which the config must list.

    `tensors` are full names. `keys` are full names too, or as in mlx-lm names within a block, each of which the last blocks
    have. Raises `UserError` for missing or additional layers.
    """
    names = sorted({name.rsplit(".lora_", 1)[0] for name in tensors})
    keys = convert(config["lora_parameters"].get("keys", names), list[str], f"{folder / CONFIG}: keys")
    inner = [key for key in keys if key in LINEARS]
    known = {full_name(key) for key in keys if key not in LINEARS}
    if inner or ("keys" not in config["lora_parameters"] and not is_whole(config)):
        known |= _last_blocks(names, inner, config.get("num_layers"))
    bare, extra = sorted(known.difference(names)), sorted(set(names) - known)
    if bare or extra:
        apart = ((bare, "of the config's keys have no tensors"), (extra, "have tensors but are not among the keys"))
        found = [listed(f"{counted(len(names), 'layer')} {what}", names) for names, what in apart if names]
        raise UserError("\n".join([f"{folder}: {CONFIG} and {WEIGHTS} do not match: {found[0]}", *found[1:]]))
    return names


def _last_blocks(names: list[str], inner: list[str], count: Any) -> set[str]:
    """The layers of an adapter of the last `count` blocks: in each block `inner`, or all that are found in any block."""
    found = [match.groups() for name in names if (match := BLOCK.fullmatch(name))]
    if not found:
        return set(names)
    start, last = found[0][0], max(int(number) for _, number, _ in found)
    first = min(int(number) for _, number, _ in found)
    if type(count) is int and count > 0:
        first = max(0, last + 1 - count)
    layers = inner or sorted({layer for *_, layer in found})
    return {f"{start}{number}.{layer}" for number in range(first, last + 1) for layer in layers}


def _split(name: str, tensors: dict[str, mx.array], ranks: list[int], scale: float, file: Path) -> Slices:
    """The slices of one layer, by round."""
    try:
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
    except KeyError as missing:
        raise UserError(f"{file}: {missing} is missing.") from None
    if a.ndim != 2 or b.ndim != 2 or not a.shape[1] == b.shape[0] == sum(ranks):
        raise UserError(f"{file}: {name} has matrices of {a.shape} and {b.shape}, but the config says rank {sum(ranks)}.")
    if not (mx.isfinite(a).all() and mx.isfinite(b).all()):
        raise UserError(f"{file}: {name} contains numbers that are not finite.")
    ends = np.cumsum(ranks).tolist()
    return [(a[:, end - width : end], scale * b[end - width : end]) for end, width in zip(ends, ranks, strict=True)]


def _read_tensors(path: Path) -> dict[str, mx.array]:
    try:
        with safe_open(path, framework="numpy") as file:  # the Rust reader checks the header more strictly than mx.load
            kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        refuse_pointer(path)
        raise UserError(f"{path} cannot be read as an adapter ({error}).") from None
    if not kinds or not kinds <= {"F32", "F16", "BF16"}:
        raise UserError(f"{path} should contain float matrices, found {', '.join(sorted(kinds)) or 'nothing'}.")
    # Not through NumPy, which has no bfloat16.
    return {name: array.astype(mx.float32) for name, array in cast(dict[str, mx.array], mx.load(str(path))).items()}
