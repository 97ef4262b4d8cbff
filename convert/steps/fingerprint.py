"""Model fingerprints, independent of layout and precision.

The fingerprint that `convert` writes into config.json, for any model folder.
"""

from pathlib import Path

from mlx_visalign.convert.io.source import open_source
from mlx_visalign.convert.layouts.llava_names import LAYOUTS, find_layout
from mlx_visalign.convert.steps.conversion import digest, fingerprint
from mlx_visalign.models.adapter_files import stated
from mlx_visalign.utils.files import read_json


def source_fingerprint(folder: Path) -> str:
    """Fingerprint of the weights a folder was converted from.

    If it was not converted, of its own weights.
    """
    return stated(folder).get("source_fingerprint") or _own_fingerprint(folder)


def _own_fingerprint(folder: Path) -> str:
    """Equals `Conversion.fingerprint` for the same weights. Reads all of them."""
    source = open_source(folder)
    kind = read_json(folder / "config.json").get("model_type")
    table = LAYOUTS[find_layout(source.tensors, kind)].table(kind)
    names = {found[1]: name for name in source.tensors if (found := table.find(name)) and found[1]}
    return fingerprint({ours: (source.tensors[name], digest(source.read(name))) for ours, name in names.items()})
