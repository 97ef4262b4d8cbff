"""An adapter's changes: LoRA updates and replaced tensors.

Reads our adapters, PEFT's, and the LoRA folders of LLaVA's authors.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_visalign.convert.io.source import Source, open_source
from mlx_visalign.convert.io.tensors import cast
from mlx_visalign.convert.layouts.llava_names import LAYOUTS, TOWER, TOWER_RULES
from mlx_visalign.convert.layouts.peft_folder import is_peft, read_non_lora, read_note, read_peft
from mlx_visalign.convert.layouts.table import Rule, Table, under
from mlx_visalign.models.adapter_files import WEIGHTS, check_listed, full_name, read_config
from mlx_visalign.utils.errors import UserError

# The authors' names, as used by their adapters and the tensors trained beside them.
AUTHORS = Table(
    [
        Rule("model.layers.*", "language_model.model.layers.*"),
        Rule("model.embed_tokens.weight", "language_model.model.embed_tokens.weight"),
        Rule("model.norm.weight", "language_model.model.norm.weight"),
        Rule("lm_head.weight", "language_model.lm_head.weight"),
        Rule("model.mm_projector.0.*", "multi_modal_projector.linear_1.*"),
        Rule("model.mm_projector.2.*", "multi_modal_projector.linear_2.*"),
        *under("model.vision_tower.vision_tower.vision_model.", TOWER, TOWER_RULES),
    ]
)


@dataclass(frozen=True)
class Update:
    """A LoRA update of one matrix.

    W [out, in] + scale * (A B)^T, with A [in, r] and B [r, out]; `turned` if stored transposed, as PEFT does.
    """

    source: Source
    a: str
    b: str
    scale: float
    turned: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        a, b = self.source.tensors[self.a].shape, self.source.tensors[self.b].shape
        return (b[0], a[1]) if self.turned else (b[1], a[0])

    def matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """A and scale * B in float32.

        Raises `UserError` if they are not finite.
        """
        a, b = self._read(self.a), self.scale * self._read(self.b)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise UserError(f"{self.source.folder}: {self.a} or {self.b} holds numbers that are not finite.")
        return a, b

    def _read(self, name: str) -> np.ndarray:
        array, _ = cast(self.source.read(name), self.source.tensors[name].dtype, "F32")
        return array.T if self.turned else array


@dataclass(frozen=True)
class Deltas:
    """An adapter's changes, by our names of the tensors.

    config   an adapter of ours: its config; PEFT's: the notes in its file, if it was converted from ours
    updates  LoRA updates to add
    beside   tensors to replace, each by a source and the name there
    """

    config: dict[str, Any]
    updates: dict[str, Update]
    beside: dict[str, tuple[Source, str]]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes that the model's tensors must have."""
        replaced = {name: source.tensors[stored].shape for name, (source, stored) in self.beside.items()}
        return replaced | {name: update.shape for name, update in self.updates.items()}


def read_deltas(folder: Path) -> Deltas:
    """Read an adapter of ours, PEFT's or LLaVA's authors'.

    Raises `UserError` if it is none of them.
    """
    if not is_peft(folder):
        return _ours(folder)
    peft = read_peft(folder)
    tables = [*(layout.table() for layout in LAYOUTS.values()), AUTHORS]
    updates = {
        _our_name(f"{path}.weight", tables, folder): Update(peft.source, layer.a.name, layer.b.name, layer.scale, turned=True)
        for path, layer in peft.layers.items()
    }
    beside = read_non_lora(folder)
    replaced = {} if beside is None else {_our_name(name, tables, folder): (beside, name) for name in beside.tensors}
    return Deltas(read_note(peft), updates, replaced)


def _ours(folder: Path) -> Deltas:
    config, parameters, _ = read_config(folder)
    source = open_source(folder / WEIGHTS)
    stored = {full_name(name): name for name in source.tensors}
    updates = {}
    for name in check_listed(config, stored, folder):
        a, b = (source.tensors.get(stored.get(f"{name}.lora_{side}", "")) for side in "ab")
        if a is None or b is None or (a.shape[-1:], b.shape[:1]) != ((parameters.rank,),) * 2:
            raise UserError(f"{folder / WEIGHTS}: {name} has no lora_a and lora_b of rank {parameters.rank}.")
        updates[f"{name}.weight"] = Update(source, a.name, b.name, parameters.scale, turned=False)
    return Deltas(config, updates, {})


def _our_name(name: str, tables: Iterable[Table], folder: Path) -> str:
    for table in tables:
        found = table.find(name)
        if found is not None and found[1]:
            return found[1]
    raise UserError(f"{folder}: {name} is not the name of a LLaVA tensor.")
