"""Reads LoRA folders of PEFT and of LLaVA's authors.

Without PEFT and torch.

PEFT computes W x + scale * B A x with A [r, in] and B [out, r]; scale is alpha / r, with rsLoRA alpha / sqrt(r)
(peft 0.21, tuners/lora/layer.py, LoraLayer.update_layer). A config that makes it compute anything else is refused.
The adapted layers are read from the tensors' names: patterns in a config are never run, since a malicious one could hang.
"""

import argparse
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_visalign.convert.io.source import Source, open_source
from mlx_visalign.convert.io.tensors import FLOATS, Entry, Tensor
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.schema import build, convert, shown

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
NON_LORA = "non_lora_trainables.bin"  # LLaVA's authors: tensors trained in full beside the LoRA
LONE_PROJECTOR = "mm_projector.bin"  # the same, if only the projector was trained
PROJECTOR = re.compile(r"model\.mm_projector\.|(model\.)?multi_modal_projector\.")
TRAINED = ("tune_mm_mlp_adapter", "mm_projector_lr")  # in config.json: the projector was trained beside the LoRA
NOTE = "visalign"  # in the metadata of a safetensors file: the config of our adapter
OUTER = "base_model.model."  # PEFT's own modules around the model
_MATRIX = re.compile(re.escape(OUTER) + r"(.+)\.lora_([AB])\.weight")
_BLOCK = re.compile(r"(.*layers)\.(\d{1,18})\.(.+)")

MEANT = {"r", "lora_alpha", "use_rslora", "rank_pattern", "bias", "init_lora_weights"}
# Provenance, target layers, injection, initialisation: settings that do not change what A and B compute.
WITHOUT_EFFECT = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("megatron_core", "qalora_group_size", "eva_config", "loftq_config", "lora_ga_config", "corda_config"),
}
PLAIN_BASE = (True, False, None, "gaussian", "orthogonal", "eva")  # of init_lora_weights; the others change the base
WHY = {
    "use_dora": "DoRA also scales the columns of the weights",
    "modules_to_save": "whole modules were trained beside the LoRA",
    "trainable_token_indices": "embeddings were trained beside the LoRA",
    "lora_bias": "biases were trained beside the LoRA",
    "alpha_pattern": "its layers have different scales",
}
MERGE = "Merge it with PEFT (merge_and_unload) and convert the merged model"


@dataclass(frozen=True)
class Matrices:
    """One layer's LoRA matrices and scale.

    A is [r, in], B is [out, r]; the scale is that of their product.
    """

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True)
class PeftAdapter:
    """A LoRA folder of PEFT.

    `layers` maps each adapted module's path in the wrapped model to its matrices.
    """

    folder: Path
    config: dict[str, Any]
    source: Source
    layers: dict[str, Matrices]


@dataclass(frozen=True)
class LoRA:
    """The settings of PEFT's config that matter here."""

    r: int
    lora_alpha: float
    use_rslora: bool = False

    def scale(self, rank: int) -> float:
        return self.lora_alpha / (math.sqrt(rank) if self.use_rslora else rank)


def is_peft(folder: Path) -> bool:
    return any((folder / name).is_file() for name in WEIGHTS)


def read_peft(folder: Path) -> PeftAdapter:
    """Read a PEFT adapter, from its headers alone.

    Raises `UserError` for anything but a plain LoRA.
    """
    config = read_json(folder / CONFIG)
    lora = read_lora(config, folder / CONFIG)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} has no PEFT adapter: expected {' or '.join(WEIGHTS)}.")
    source = open_source(file)
    layers = _pairs(source, lora, ranks_differ=bool(config.get("rank_pattern")), where=file)
    _check_complete(config, layers, file)
    return PeftAdapter(folder, config, source, layers)


def read_non_lora(folder: Path) -> Source | None:
    """Tensors trained in full beside an authors' LoRA.

    That is the projector, by the names of the authors' full models: saved as
    base_model.model.model.mm_projector.0.weight, it stands for model.mm_projector.0.weight (haotian-liu/LLaVA,
    llava/model/builder.py). None if there is no such file.
    """
    files = [folder / name for name in (LONE_PROJECTOR, NON_LORA) if (folder / name).is_file()]
    if not files:
        return None
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in open_source(file).entries.items():
            full = re.sub(r"^(base_model\.)?model\.(?=model\.|lm_head\.)", "", name)
            full = re.sub(r"^(?=mm_projector\.)", "model.", full)
            entries[full] = replace(entry, tensor=replace(entry.tensor, name=full))
    return Source(folder, entries, {})


def add_base_projector(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-projector", action="store_true", help="use the base's projector if the LoRA folder lacks the trained one"
    )


def require_beside(folder: Path, base_projector: bool = False) -> str | None:
    """Refuse an authors' LoRA folder that lacks its trained projector.

    A training saves it only at its end, so intermediate checkpoints lack it; their config.json says that it was trained.
    Returns a line for the summary if the base's projector is used: because of `base_projector`, or because config.json does
    not say whether it was trained.
    """
    beside = read_non_lora(folder)
    if not (folder / "config.json").is_file() or (beside is not None and any(map(PROJECTOR.match, beside.tensors))):
        return None
    config = read_json(folder / "config.json")
    if not any(name in config for name in ("mm_vision_tower", "mm_projector_type")) or config.get("freeze_mm_mlp_adapter"):
        return None
    trained = [f"{name} {shown(config[name])}" for name in TRAINED if config.get(name)]
    if trained and not base_projector:
        raise UserError(
            f"{folder} has no projector, though its config.json says that it was trained ({', '.join(trained)}): only the "
            f"final folder of a training has {NON_LORA}. Use that folder, copy the file here, or use the base's projector with "
            "--base-projector; the model will then answer differently from the trained one."
        )
    return f"the base's: {folder} has no {NON_LORA}" + (", though the projector was trained" if trained else "")


def read_note(peft: PeftAdapter) -> dict[str, Any]:
    """Our config, from before a conversion to PEFT.

    Empty if the adapter was never ours.
    """
    try:
        note = json.loads(peft.source.metadata.get(NOTE, "{}"))
    except (ValueError, RecursionError):
        note = None
    if not isinstance(note, dict):
        raise UserError(f"{peft.folder}: the metadata {NOTE!r} in its file is damaged: expected JSON.")
    return note


def read_lora(config: dict[str, Any], file: Path) -> LoRA:
    """Rank and scale in PEFT's config.

    Raises `UserError` if it is more than a plain LoRA.
    """
    if config.get("peft_type") != "LORA":
        raise UserError(f"{file}: expected peft_type 'LORA', got {shown(config.get('peft_type'))}.")
    for name, value in config.items():
        if name not in MEANT | WITHOUT_EFFECT and value not in (None, False, [], {}):
            why = WHY.get(name, "that is not supported here")
            raise UserError(f"{file}: {name} is {shown(value)}, and {why}. {MERGE}.")
    if config.get("bias", "none") != "none":
        raise UserError(f"{file}: bias is {shown(config['bias'])}, so biases were trained beside the LoRA. {MERGE}.")
    if (init := config.get("init_lora_weights")) not in PLAIN_BASE:
        raise UserError(f"{file}: init_lora_weights is {shown(init)}, which changes the base's own weights. {MERGE}.")
    given = {name: config[name] for name in ("r", "lora_alpha", "use_rslora") if name in config}
    lora = build(LoRA, given, str(file))
    if lora.r < 1:
        raise UserError(f"{file}: the rank r should be at least 1, not {lora.r}.")
    return lora


def _pairs(source: Source, lora: LoRA, ranks_differ: bool, where: Path) -> dict[str, Matrices]:
    """A and B of every adapted linear layer, in the order of the file."""
    found = {name: match.groups() for name in source.tensors if (match := _MATRIX.fullmatch(name))}
    strange = sorted(source.tensors.keys() - found.keys())
    if strange or not found:
        raise UserError(
            f"{where}: {len(strange)} tensors are not lora_A or lora_B of a linear layer ({first_of(strange)}); "
            f"embeddings, biases and whole modules trained beside the LoRA are not supported. {MERGE}."
        )
    layers = {}
    for path in dict.fromkeys(path for path, _ in found.values()):
        a, b = (source.tensors.get(f"{OUTER}{path}.lora_{side}.weight") for side in "AB")
        if a is None or b is None:
            raise UserError(f"{where}: {path} has lora_{'A' if b is None else 'B'} but no lora_{'B' if b is None else 'A'}.")
        _check_shapes(path, a, b, None if ranks_differ else lora.r, where)
        layers[path] = Matrices(a, b, lora.scale(a.shape[0]))
    return layers


def _check_shapes(path: str, a: Tensor, b: Tensor, rank: int | None, where: Path) -> None:
    if not {a.dtype, b.dtype} <= set(FLOATS):
        raise UserError(f"{where}: {path} has matrices of {a.dtype} and {b.dtype}; expected floats.")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise UserError(f"{where}: {path} has an A of {a.shape} and a B of {b.shape}; expected (r, in) and (out, r).")
    if rank not in (None, a.shape[0]):
        raise UserError(f"{where}: {path} has matrices of rank {a.shape[0]}, {CONFIG} says r = {rank}.")


def _check_complete(config: dict[str, Any], layers: Iterable[str], where: Path) -> None:
    """If the config lists layers by their last names, all blocks of a module must have the same layers."""
    targets = config.get("target_modules")
    if isinstance(targets, list):
        convert(targets, list[str], f"{where.with_name(CONFIG)}: target_modules")
    if not isinstance(targets, list) or config.get("layers_to_transform") or config.get("exclude_modules"):
        return
    stacks: dict[str, dict[int, set[str]]] = {}
    for path in layers:
        if match := _BLOCK.fullmatch(path):
            stack, index, name = match.groups()
            stacks.setdefault(stack, {}).setdefault(int(index), set()).add(name)
    missing = []
    for stack, blocks in stacks.items():
        names = set().union(*blocks.values())
        for index in blocks.keys() | set(range(len(blocks))):
            missing += [f"{stack}.{index}.{name}" for name in names - blocks.get(index, set())]
    unmet = [target for target in targets if not any(path == target or path.endswith(f".{target}") for path in layers)]
    if missing or unmet:
        raise UserError(f"{where}: no tensors for {first_of(sorted(missing) or unmet)}, which target_modules includes.")


def first_of(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
