"""CLIP from Hugging Face or OpenAI, for the scorers.

OpenAI's own files are TorchScript programs, which are refused: save their `state_dict()` as a .bin first.

LLaVA-1.5's vision tower is a frozen CLIP. With --llava it is compared with the CLIP's own; if they are equal, the new
folder holds only what the LLaVA lacks (text tower, projections, logit scale) and a pointer to the rest.
"""

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mlx.utils import tree_flatten

from mlx_visalign.convert.io.folder import carry, check_output, new_folder, without_code, write_json, write_weights
from mlx_visalign.convert.io.source import Source, open_source
from mlx_visalign.convert.io.tensors import cast
from mlx_visalign.convert.layouts.clip_names import HUGGING_FACE, OPENAI, is_openai, openai_config, split_qkv
from mlx_visalign.convert.layouts.table import CHANNELS_LAST, Move, Plan, Shape, Table, plan
from mlx_visalign.convert.steps.conversion import Conversion
from mlx_visalign.convert.steps.dry_run import describe, gigabytes
from mlx_visalign.convert.steps.to_mlx import CODES, OURS, meter
from mlx_visalign.convert.steps.verify import verify_checksums
from mlx_visalign.models.adapter_files import stated
from mlx_visalign.models.clip import CLIP, PATCHES, SHARED, CLIPConfig
from mlx_visalign.models.hub import add_revision, find_model
from mlx_visalign.models.model_folder import damaged_files, missing_parts, refuse
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.formatting import in_a_row

EXAMPLES = (
    "--hf-path openai/clip-vit-large-patch14-336 --mlx-path clip",
    "--hf-path openai/clip-vit-large-patch14-336 --llava llava-mlx --mlx-path clip --dry-run",
)
TOWER = "vision_tower."  # the prefix of CLIP's names in a LLaVA


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hf-path", "--model", metavar="MODEL", required=True, help="CLIP model: a folder, a file or a hub name"
    )
    add_revision(parser)
    parser.add_argument("--mlx-path", metavar="OUT", default="clip", help="output folder (default: %(default)s)")
    parser.add_argument("--llava", metavar="MODEL", help="share the vision tower of this converted LLaVA, if it is the same")
    parser.add_argument("--dtype", choices=tuple(CODES), default="float16", help="float type (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    parser.add_argument("--verify", action="store_true", help="verify the checksum of every tensor")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Convert or plan. Returns the summary as a dict."""
    folder, output = find_model(options.hf_path, options.revision), Path(options.mlx_path)
    source, layout, table, config = understand(folder)
    moves = plan(source.tensors, table, parameters(config), str(folder))
    figures: dict[str, Any] = {}
    if options.llava:
        llava = find_model(options.llava)
        moves, figures["shared"], equal = share(source, moves, llava)
        config = config | ({OURS: config.get(OURS, {}) | _pointer(llava, output)} if equal else {})
    conversion = Conversion(source, moves, CODES[options.dtype])
    figures["parameters"] = f"{sum(move.target.count for move in moves.moves):,} stored"
    check_output(output, folder)
    if options.dry_run:
        return figures | describe(source, layout, moves, conversion)
    started = time.perf_counter()
    with new_folder(output, folder) as unfinished:
        size = sum(tensor.nbytes for tensor in conversion.tensors)
        with meter("converting", size) as on_bytes:
            write_weights(unfinished, conversion.tensors, conversion.produce, {"format": "pt"}, on_bytes)
        seconds = time.perf_counter() - started
        write_json(unfinished / "config.json", config | {"torch_dtype": options.dtype})
        carried = carry(folder, unfinished)
        if options.verify:
            figures["verified"] = verify_checksums(conversion, table, unfinished)
    if missing := missing_parts(output):
        say(f"Warning: {output} lacks {in_a_row(missing)}: copy them there from the original CLIP, or it cannot score.")
    return figures | {
        "carried over": ", ".join(carried) or "nothing: copy CLIP's tokenizer and preprocessor_config.json here",
        "time": f"{seconds:.1f} s, {size / 1e6 / seconds:.0f} MB/s",
        "output": f"{output}, {gigabytes(size)}",
    }


def understand(path: Path) -> tuple[Source, str, Table, dict[str, Any]]:
    """A CLIP's weights, layout name, layout table and config.

    OpenAI's layout has no config.json; there it is derived from the shapes.
    """
    refuse(path, damaged_files(path))
    source = open_source(path)
    if is_openai(source):
        return split_qkv(source), "OpenAI, quick_gelu", OPENAI, openai_config(source)
    config = without_code(read_json(source.folder / "config.json"))
    if config.get("model_type") != "clip":
        raise UserError(f"{path}/config.json describes a {config.get('model_type')!r} model, expected 'clip'.")
    return source, "Hugging Face", HUGGING_FACE, config


def parameters(config: dict[str, Any]) -> dict[str, Shape]:
    """Parameter names and shapes of Hugging Face's CLIPModel.

    MLX is lazy: no weight is allocated.
    """
    arrays = dict(tree_flatten(CLIP(CLIPConfig.from_dict(config)).parameters()))
    shapes = {name: array.shape for name, array in arrays.items()}
    return shapes | {PATCHES: CHANNELS_LAST.inverse.shape(shapes[PATCHES], ())}


def share(source: Source, moves: Plan, llava: Path) -> tuple[Plan, str, bool]:
    """The moves still needed when a LLaVA shares its tower.

    If the LLaVA's tower equals this CLIP's bit for bit in float16, its tensors are left out; otherwise all moves stay.
    Returns the plan, a line for the summary, and whether the tower is shared.
    """
    tower = open_source(llava)
    if tower.metadata.get("format") != "mlx" or "source_fingerprint" not in stated(llava):
        raise UserError(f"{llava} was not converted by `visalign convert`: convert it first, with `llava` or `llava_original`.")
    both = [move for move in moves.moves if TOWER + move.target.name in tower.tensors]
    different = [move.target.name for move in both if not _is_equal(source, move, tower)]
    if different or not both:
        what = (
            f"{len(different)} of {len(both)} tensors differ, {different[0]} first"
            if different
            else "it has none of these tensors"
        )
        return moves, f"nothing: {llava} has a different vision tower ({what})", False
    left = [move for move in moves.moves if move not in both]
    saved = sum(move.target.count for move in both)
    return replace(moves, moves=left), f"{len(both)} tensors, {saved:,} parameters, with {llava}", True


def _is_equal(source: Source, move: Move, tower: Source) -> bool:
    theirs = tower.tensors[TOWER + move.target.name]
    if theirs.dtype not in CODES.values():
        return False  # quantised
    ours = move.rule.change.apply(source.read(move.source.name), move.target.shape)
    if move.target.name == PATCHES:
        ours = CHANNELS_LAST.apply(ours, theirs.shape)
    mine, other = cast(ours, move.source.dtype, "F16")[0], cast(tower.read(theirs.name), theirs.dtype, "F16")[0]
    return np.array_equal(mine.view(np.uint16), other.view(np.uint16))


def _pointer(llava: Path, output: Path) -> dict[str, str]:
    """The LLaVA's path relative to the new folder, and its fingerprint."""
    return {
        SHARED: os.path.relpath(llava.resolve(), output.resolve()),
        "llava_fingerprint": stated(llava)["source_fingerprint"],
    }
