"""The way back: a float MLX folder as Hugging Face safetensors, which transformers loads."""

import argparse
import time
from pathlib import Path
from typing import Any

from mlx_visalign.convert.conversion import Conversion
from mlx_visalign.convert.folder import carry, check_output, new_folder, write_json, write_weights
from mlx_visalign.convert.llava_config import complete
from mlx_visalign.convert.llava_names import LAYOUTS, parameters
from mlx_visalign.convert.plan import describe, gigabytes
from mlx_visalign.convert.source import open_source
from mlx_visalign.convert.table import plan
from mlx_visalign.convert.to_mlx import OURS, meter
from mlx_visalign.convert.verify import verify_checksums
from mlx_visalign.errors import UserError
from mlx_visalign.vlm import read_json

EXAMPLES = (
    "--mlx-path llava-mlx --hf-path llava-hf",
    "--mlx-path llava-mlx --hf-path llava-hf --layout nested --dry-run",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mlx-path", "--model", metavar="FOLDER", required=True, help="a converted folder; only read")
    parser.add_argument("--hf-path", metavar="OUT", required=True, help="the new folder")
    parser.add_argument("--layout", choices=tuple(LAYOUTS), help="of the names; that of the source, or classic")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done, from the files' headers")
    parser.add_argument("--verify", action="store_true", help="compare the checksum of every tensor")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Export, or only plan to. Returns figures by name, to show. Every tensor keeps its type and its bits.

    Raises `UserError` for a quantised folder: nothing brings the weights back that it was made from.
    """
    folder, output = Path(options.mlx_path), Path(options.hf_path)
    config = complete(read_json(folder / "config.json"))
    source = open_source(folder)
    if source.metadata.get("format") != "mlx":
        raise UserError(f"{folder} is not in MLX's layout, so there is nothing to export.")
    layout = options.layout or _layout_of(config)
    table = LAYOUTS[layout].inverse
    moves = plan(source.tensors, table, table.through(parameters(config)), str(folder))
    conversion = Conversion(source, moves)
    if options.dry_run:
        check_output(output, folder)
        return describe(source, "MLX", moves, conversion)
    started = time.perf_counter()
    with new_folder(output, folder) as unfinished:
        size = sum(tensor.nbytes for tensor in conversion.tensors)
        with meter("exporting", size) as on_bytes:
            write_weights(unfinished, conversion.tensors, conversion.produce, {"format": "pt"}, on_bytes)
        seconds = time.perf_counter() - started
        write_json(unfinished / "config.json", config)
        carried = carry(folder, unfinished)
        checked = {"verified": verify_checksums(conversion, table, unfinished)} if options.verify else {}
    return {
        "tensors": f"{len(conversion.tensors)} in the layout {layout}",
        "carried over": ", ".join(carried) or "nothing",
        **checked,
        "time": f"{seconds:.1f} s, {size / 1e6 / seconds:.0f} MB/s",
        "output": f"{output}, {gigabytes(size)}",
    }


def _layout_of(config: dict[str, Any]) -> str:
    """The layout that the folder was converted from."""
    ours = config.get(OURS)
    layout = ours.get("source_layout", "classic") if isinstance(ours, dict) else "classic"
    return layout if layout in LAYOUTS else "classic"  # others, such as the authors' own, are nothing transformers loads
