"""Weights in the layout of LLaVA's authors.

Gathers them from all their files, and adds and removes rows of the vocabulary.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_visalign.convert.io.assembled import Assembled, Made, entry_named, merged, rows, with_rows
from mlx_visalign.convert.io.safetensors_file import write_safetensors
from mlx_visalign.convert.io.source import Source, open_source
from mlx_visalign.convert.io.tensors import Entry
from mlx_visalign.convert.layouts.llava_names import BUFFERS
from mlx_visalign.convert.layouts.peft_folder import LONE_PROJECTOR, NON_LORA, is_peft
from mlx_visalign.convert.layouts.table import Table
from mlx_visalign.convert.steps.lora_deltas import AUTHORS, read_deltas
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.schema import unknown

TABLE = Table([*BUFFERS, *AUTHORS.rules])
BACK = TABLE.inverse
PROJECTOR, TOWER = "model.mm_projector.", "model.vision_tower.vision_tower.vision_model."
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
ROWS = "vocabulary_rows.safetensors"  # beside the weights: the rows of both that an export to this layout removes
_TOWER_NAME = re.compile(r"(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..+)")


def gather(folder: Path, base: Path | None) -> Assembled:
    """A model's stored tensors, by the authors' names.

    Those of `base` if `folder` has only a LoRA or a projector. Raises `UserError` if a base is missing or superfluous.
    """
    is_part = is_peft(folder) or ((folder / LONE_PROJECTOR).is_file() and not any(folder.glob("*model*")))
    if is_part and base is None:
        raise UserError(f"{folder} is not a complete model: give the one it was trained on with --base.")
    if base is not None and not is_part:
        raise UserError(f"{folder} is a complete model: omit --base.")
    source = open_source(base or folder)
    entries = _projector(base or folder) | source.entries
    return Assembled(folder, entries | (_projector(folder) if base else {}), source.metadata)


def _projector(folder: Path) -> dict[str, Entry]:
    """The tensors of mm_projector.bin, by their names in a complete model; empty without it."""
    file = folder / LONE_PROJECTOR
    found = open_source(file).entries if file.is_file() else {}
    named = {"model." + name.removeprefix("model."): entry for name, entry in found.items()}
    return {name: entry_named(entry, name) for name, entry in named.items()}


def _authors(ours: str) -> str:
    found = BACK.find(ours)
    return found[1] if found else ours


def with_adapter(source: Assembled, folder: Path) -> Assembled:
    """The model with the LoRA in `folder` merged.

    Tensors trained beside the LoRA replace the model's own. Raises `UserError` if names or shapes do not fit.
    """
    deltas = read_deltas(folder)
    beside = {_authors(ours): entries.entries[name] for ours, (entries, name) in deltas.beside.items()}
    source = replace(source, entries=source.entries | {name: entry_named(entry, name) for name, entry in beside.items()})
    made: dict[str, Made] = {}
    for ours, update in deltas.updates.items():
        name = _authors(ours)
        if name not in source.entries:
            raise UserError(f"{folder}: the adapter does not fit its base: {unknown(name, source.entries)}")
        if (shape := source.tensors[name].shape) != update.shape:
            raise UserError(
                f"{folder}: the adapter expects {name} of shape {update.shape}, its base has {shape}: use the right base."
            )
        made[name] = merged(source, name, update)
    return replace(source, made=made)


def check_projector(source: Assembled) -> None:
    if not any(name.startswith(PROJECTOR) for name in source.tensors):
        raise UserError(
            f"{source.folder} has no projector: expected {PROJECTOR}0.weight ..., {LONE_PROJECTOR} or, beside a LoRA, "
            f"{NON_LORA}. Without it the model cannot see."
        )


def read_tower(folder: Path) -> tuple[dict[str, Entry], dict[str, Any]]:
    """A CLIP's vision tower and its config.

    Its tensors have the names of a complete model in the authors' layout.
    """
    config, entries = read_json(folder / "config.json"), open_source(folder).entries
    found = {name: match[1] for name in entries if (match := _TOWER_NAME.fullmatch(name))}
    tower = {TOWER + name: entry_named(entries[stored], TOWER + name) for stored, name in found.items()}
    return tower, config.get("vision_config", config)


def added_rows(folder: Path) -> dict[str, Entry]:
    """Vocabulary rows that an export saved beside a model.

    Rows of the embedding and the head; empty without the file.
    """
    found = open_source(folder / ROWS).entries if (folder / ROWS).is_file() else {}
    if any(len(entry.tensor.shape) != 2 for entry in found.values()):
        raise UserError(f"{folder / ROWS} holds something other than matrix rows. Remove it.")
    return found


def with_vocabulary(source: Assembled, vocab_size: int, count: int, added: Mapping[str, Entry]) -> Assembled:
    """Extend embedding and head from `vocab_size` to `count` rows.

    The new rows are `added`, or else each the mean of the old ones.
    """
    made = dict(source.made)
    for name in VOCABULARY:
        if (tensor := source.tensors.get(name)) is None:
            continue
        if len(tensor.shape) != 2 or tensor.shape[0] != vocab_size:
            raise UserError(
                f"{source.folder}: {name} has the shape {tensor.shape}, but config.json has a vocab_size of {vocab_size}."
            )
        more = added.get(name)
        if added and (more is None or more.tensor != replace(tensor, shape=(count - vocab_size, tensor.shape[1]))):
            raise UserError(f"{source.folder}: {ROWS} does not fit {name}: it belongs to another model. Remove it.")
        made[name] = with_rows(source, name, count, more)
    return replace(source, made=made)


def without_added(source: Source, vocab_size: int) -> tuple[Source, dict[str, Entry]]:
    """Cut embedding and head to `vocab_size` rows.

    `source` is in our layout. Returns it and the removed rows, by the authors' names.
    """
    entries, added = dict(source.entries), {}
    for name in VOCABULARY:
        found = TABLE.find(name)
        if found and (entry := entries.get(found[1])):
            entries[found[1]] = rows(entry, 0, vocab_size, found[1])
            added[name] = rows(entry, vocab_size, entry.tensor.shape[0], name)
    return replace(source, entries=entries), added


def write_added(folder: Path, added: Mapping[str, Entry]) -> None:
    """Write the file that `added_rows` reads."""
    tensors = [entry.tensor for entry in added.values()]
    write_safetensors(folder / ROWS, tensors, lambda tensor: added[tensor.name].read(), {"format": "pt"}, lambda _: None)
