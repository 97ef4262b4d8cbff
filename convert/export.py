"""Float MLX folders to Hugging Face's or the original layout."""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlx_visalign.convert.io.folder import carry, check_output, new_folder, write_json, write_weights
from mlx_visalign.convert.io.source import Source, open_source
from mlx_visalign.convert.layouts import original
from mlx_visalign.convert.layouts.llava_config import complete
from mlx_visalign.convert.layouts.llava_names import LAYOUTS
from mlx_visalign.convert.layouts.original_config import authors
from mlx_visalign.convert.layouts.original_preprocessing import remove_added_tokens
from mlx_visalign.convert.layouts.processor import state_template
from mlx_visalign.convert.layouts.table import Table, plan
from mlx_visalign.convert.steps.conversion import Conversion
from mlx_visalign.convert.steps.dry_run import describe, gigabytes
from mlx_visalign.convert.steps.to_mlx import OURS, meter
from mlx_visalign.convert.steps.verify import verify_checksums
from mlx_visalign.models import families
from mlx_visalign.models.adapter_files import stated
from mlx_visalign.models.hub import add_revision, find_model
from mlx_visalign.models.model_folder import refuse, what_is_wrong
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json

ORIGINAL = "original"  # LLaVA's authors' layout

EXAMPLES = (
    "--mlx-path llava-mlx --hf-path llava-hf",
    "--mlx-path llava-mlx --hf-path llava-hf --layout nested --dry-run",
    "--mlx-path llava-mlx --hf-path llava-original --layout original",
)


@dataclass(frozen=True)
class Export:
    """What to export, and how.

    source     the tensors to write
    described  the Hugging Face config with their shapes
    table      from our names to those of the layout
    config     the config.json to write
    finish     completes the written folder; returns lines for the summary
    """

    source: Source
    described: dict[str, Any]
    table: Table
    config: dict[str, Any]
    finish: Callable[[Path], dict[str, str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mlx-path", "--model", metavar="MODEL", required=True, help="converted model: a folder or a hub name")
    add_revision(parser)
    parser.add_argument("--hf-path", metavar="OUT", required=True, help="output folder")
    parser.add_argument(
        "--layout", choices=(*LAYOUTS, ORIGINAL), help="layout of the tensor names (default: as converted, or classic)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan from the files' headers and write nothing")
    parser.add_argument("--verify", action="store_true", help="verify the checksum of every tensor")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Export or plan. Returns the summary as a dict.

    Every tensor keeps its type and its bits. In the authors' layout, embedding and head have no rows for added tokens;
    those go into a file beside the weights, from which `llava_original` restores them.

    Raises `UserError` for a quantised folder: its original weights cannot be recovered.
    """
    folder, output = find_model(options.mlx_path, options.revision), Path(options.hf_path)
    config = complete(read_json(folder / "config.json"))
    source = open_source(folder)
    if source.metadata.get("format") != "mlx":
        raise UserError(f"{folder} is not in MLX's layout: expected a folder written by `visalign convert`.")
    layout = options.layout or _layout_of(config)
    export = _to_original(folder, source, config) if layout == ORIGINAL else _to_hugging_face(source, config, layout)
    moves = plan(export.source.tensors, export.table, export.table.through(families.parameters(export.described)), str(folder))
    conversion = Conversion(export.source, moves)
    if options.dry_run:
        check_output(output, folder)
        return describe(source, "MLX", moves, conversion)
    started = time.perf_counter()
    with new_folder(output, folder) as unfinished:
        size = sum(tensor.nbytes for tensor in conversion.tensors)
        with meter("exporting", size) as on_bytes:
            write_weights(unfinished, conversion.tensors, conversion.produce, {"format": "pt"}, on_bytes)
        seconds = time.perf_counter() - started
        write_json(unfinished / "config.json", export.config)
        carried = carry(folder, unfinished)
        remarks = export.finish(unfinished)
        if layout != ORIGINAL:
            refuse(output, what_is_wrong(unfinished, export.config))
        checked = {"verified": verify_checksums(conversion, export.table, unfinished)} if options.verify else {}
    return {
        "tensors": f"{len(conversion.tensors)} in the layout {layout}",
        "carried over": ", ".join(carried) or "nothing",
        **remarks,
        **checked,
        "time": f"{seconds:.1f} s, {size / 1e6 / seconds:.0f} MB/s",
        "output": f"{output}, {gigabytes(size)}",
    }


def _to_hugging_face(source: Source, config: dict[str, Any], layout: str) -> Export:
    return Export(
        source, config, LAYOUTS[layout].table(config["model_type"]).inverse, config, partial(state_template, config=config)
    )


def _to_original(folder: Path, source: Source, config: dict[str, Any]) -> Export:
    vocab_size = config["image_token_index"]
    written = authors(config, stated(folder).get("aspect", "pad"))
    source, added = original.without_added(source, vocab_size)

    def finish(unfinished: Path) -> dict[str, str]:
        original.write_added(unfinished, added)
        remove_added_tokens(unfinished, vocab_size)
        return _template_remark(config)

    described = config | {"text_config": config["text_config"] | {"vocab_size": vocab_size}}
    return Export(source, described, original.BACK, written, finish)


def _template_remark(config: dict[str, Any]) -> dict[str, str]:
    """A remark if the template is not the authors' vicuna_v1.

    Their code chooses the template by a conversation name, not from a file.
    """
    template = config.get(OURS, {}).get("template", "vicuna_v1")
    if template == "vicuna_v1":
        return {}
    return {"template": f"{template}, which the authors' code does not know: it will use vicuna_v1"}


def _layout_of(config: dict[str, Any]) -> str:
    """The layout that the folder was converted from."""
    ours = config.get(OURS)
    layout = ours.get("source_layout", "classic") if isinstance(ours, dict) else "classic"
    return layout if layout in LAYOUTS else "classic"  # transformers cannot load others, such as the authors'
