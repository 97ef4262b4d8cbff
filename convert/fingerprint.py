"""Which model is it, whatever its layout and its precision? The fingerprint that `convert` writes, for any folder."""

import hashlib
from pathlib import Path

from mlx_visalign.convert.conversion import digest
from mlx_visalign.convert.llava_names import LAYOUTS, find_layout
from mlx_visalign.convert.source import open_source
from mlx_visalign.models.adapter_files import stated
from mlx_visalign.utils.files import read_json


def source_fingerprint(folder: Path) -> str:
    """The fingerprint of the weights that a model folder was converted from; of its own if it was not converted."""
    return stated(folder).get("source_fingerprint") or _own_fingerprint(folder)


def _own_fingerprint(folder: Path) -> str:
    """As `Conversion.fingerprint` has it for the same weights. Reads them all."""
    source = open_source(folder)
    kind = read_json(folder / "config.json").get("model_type")
    table = LAYOUTS[find_layout(source.tensors, kind)].table(kind)
    names = {found[1]: name for name in source.tensors if (found := table.find(name)) and found[1]}
    lines = [
        f"{ours} {source.tensors[name].dtype} {source.tensors[name].shape} {digest(source.read(name))}\n"
        for ours, name in sorted(names.items())
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
