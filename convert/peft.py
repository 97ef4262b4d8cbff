"""LoRA adapters between PEFT's format and ours, losslessly.

PEFT stores A [r, in], B [out, r] and alpha; we, like mlx-lm and mlx-vlm, store A [in, r], B [r, out] and their scale. The
rest of PEFT's config is kept in ours ("peft"), the rest of ours in the metadata of PEFT's file ("visalign"), so both
conversions can be reversed.
"""

import argparse
import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_visalign.convert.io.assembled import renamed
from mlx_visalign.convert.io.folder import check_output, new_folder, write_json
from mlx_visalign.convert.io.safetensors_file import write_safetensors
from mlx_visalign.convert.io.source import Source, open_source
from mlx_visalign.convert.layouts.peft_folder import (
    NOTE,
    OUTER,
    PeftAdapter,
    add_base_projector,
    first_of,
    is_peft,
    read_lora,
    read_non_lora,
    read_note,
    read_peft,
    require_beside,
)
from mlx_visalign.convert.layouts.table import Plan, Rule, Table, Transpose, plan
from mlx_visalign.convert.steps.conversion import Conversion, digest
from mlx_visalign.convert.steps.dry_run import gigabytes
from mlx_visalign.convert.steps.fingerprint import source_fingerprint
from mlx_visalign.convert.steps.to_mlx import meter
from mlx_visalign.models.adapter_files import (
    CONFIG,
    LINEARS,
    WEIGHTS,
    Parameters,
    check_listed,
    fingerprint,
    full_name,
    is_older,
    other_form,
    read_adapter,
    read_config,
    stated,
)
from mlx_visalign.models.hub import add_revision, find_model
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.schema import unknown

EXAMPLES = (
    "--adapter-path llava-lora-peft --output adapter --model llava-mlx",
    "--adapter-path runs/seva/adapter --output adapter-peft --dry-run",
)
# The prefix of a block's number in the models PEFT wraps: of transformers 5, of older versions, of LLaVA's authors.
BLOCKS = {"nested": "model.language_model.layers.", "classic": "language_model.model.layers.", "original": "model.layers."}
OURS = "language_model.model.layers."
# Of our config; everything else goes into the metadata of PEFT's file.
STANDARD = ("fine_tune_type", "num_layers", "lora_parameters", "peft")
TURNED = Transpose((1, 0))
OLDER = Table([Rule(f"{OURS}*.{side}", f"{OURS}*.lora_{side.lower()}") for side in "AB"])  # mlx-vlm's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter-path", metavar="FOLDER", required=True, help="adapter folder or hub name, PEFT's or ours")
    parser.add_argument("--output", metavar="OUT", required=True, help="output folder, in the other format")
    parser.add_argument("--model", metavar="MODEL", help="from PEFT: its base model, so that other models are refused")
    parser.add_argument(
        "--layout", choices=BLOCKS, help="to PEFT: layout of the layer names (default: as converted, or nested, transformers 5)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan from the files' headers and write nothing")
    parser.add_argument(
        "--scale", type=positive_number, metavar="X", help="LoRA scale, which mlx-vlm's older format does not record"
    )
    add_base_projector(parser)
    add_revision(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Convert an adapter. Returns the summary as a dict."""
    folder, output = find_model(options.adapter_path, options.revision), Path(options.output)
    check_output(output, folder)
    if is_peft(folder):
        projector = require_beside(folder, options.base_projector)
        figures = {"projector": projector} if projector else {}
        return figures | to_ours(folder, output, options.model and find_model(options.model), options.dry_run)
    if (folder / CONFIG).is_file() and is_older(read_json(folder / CONFIG)):
        return from_older(folder, output, options.scale, options.dry_run)
    return to_peft(folder, output, options.layout, options.dry_run)


def positive_number(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")


def to_ours(folder: Path, output: Path, model: Path | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Convert a PEFT adapter to ours.

    `model` is the folder it was trained on. Raises `UserError`, with a way out, for adapters that our format cannot express.
    """
    peft = read_peft(folder)
    _refuse_projector(folder)
    layout, source, figures = _language(peft)
    rank, scale = _common(peft, source)
    found = _plan(source, _table(layout), folder)
    keys = sorted({move.target.name.rsplit(".lora_", 1)[0] for move in found.moves})
    _check_linears(folder, keys)
    config = {
        **read_note(peft),
        "fine_tune_type": "lora",
        "num_layers": -1,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys},
        "peft": {"layout": layout, "config": peft.config},
        **({} if model is None else _trained_on(model)),
    }
    figures |= _about(f"PEFT's, layout {layout}", keys, rank, scale)
    if "base_fingerprint" not in config:
        figures["base"] = "unknown: any model of these shapes will accept it (name the right one with --model)"
    if not dry_run:
        figures |= _write(Conversion(source, found), output / WEIGHTS, config, {"format": "mlx"}, read_config)
    return figures


def to_peft(folder: Path, output: Path, layout: str | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Convert our, mlx-lm's or mlx-vlm's adapter to PEFT.

    The rounds of a run are already one LoRA.
    """
    config, parameters, _ = read_config(folder)
    recorded = _recorded(config, folder)
    layout = layout or recorded.get("layout", "nested")
    source, table = _by_full_names(open_source(folder / WEIGHTS)), _table(layout).inverse
    found = _plan(source, table, folder)
    keys = sorted({move.source.name.rsplit(".lora_", 1)[0] for move in found.moves})
    check_listed(config, source.tensors, folder)
    if recorded.get("layout") == layout and _same_lora(recorded["config"], parameters, folder):
        described = recorded["config"]
    else:
        described = _describe(parameters, [BLOCKS[layout] + key.removeprefix(OURS) for key in keys])
    note = {name: value for name, value in config.items() if name not in STANDARD}
    metadata = {"format": "pt", **({NOTE: json.dumps(note)} if note else {})}
    figures = _about(f"ours, to layout {layout}", keys, parameters.rank, parameters.scale)
    if not dry_run:
        file = output / "adapter_model.safetensors"
        figures |= _write(Conversion(source, found), file, described, metadata, read_peft)
    return figures


def _by_full_names(source: Source) -> Source:
    names = {name: full_name(name) for name in source.tensors}
    return source if all(old == new for old, new in names.items()) else renamed(source, names)


def from_older(folder: Path, output: Path, scale: float | None, dry_run: bool = False) -> dict[str, Any]:
    """Convert an adapter in mlx-vlm's older format to ours.

    `scale` is the factor of A B, which the format does not record.
    """
    if scale is None:
        raise UserError(other_form(folder, read_json(folder / CONFIG)))  # the message names the two possible values
    source, rank = open_source(folder / WEIGHTS), read_json(folder / CONFIG)["rank"]
    found = _plan(source, OLDER, folder)
    keys = sorted({move.target.name.rsplit(".lora_", 1)[0] for move in found.moves})
    _check_linears(folder, keys)
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys}
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    figures = _about("in mlx-vlm's older form", keys, rank, scale)
    if not dry_run:
        figures |= _write(Conversion(source, found), output / WEIGHTS, config, {"format": "mlx"}, read_adapter)
    return figures


def _table(layout: str) -> Table:
    """From PEFT's names in a layout to ours."""
    inner = OUTER + BLOCKS[layout]
    return Table([Rule(f"{inner}*.lora_{side}.weight", f"{OURS}*.lora_{side.lower()}", TURNED) for side in "AB"])


def _plan(source: Source, table: Table, folder: Path) -> Plan:
    shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
    return plan(source.tensors, table, table.through(shapes), str(folder))


def _refuse_projector(folder: Path) -> None:
    beside = read_non_lora(folder)
    if beside is not None:
        raise UserError(
            f"{folder} has, beside the LoRA, {len(beside.tensors)} tensors that were trained in full "
            f"({first_of(sorted(beside.tensors))}); without them the adapter is incomplete. Merge everything into a model: "
            "with `visalign convert llava_original`, or with `visalign fuse` into a model that is already converted."
        )


def _language(peft: PeftAdapter) -> tuple[str, Source, dict[str, Any]]:
    """The layout, the language model's tensors, and a summary line on layers left out.

    PEFT's target_modules are suffixes, which match layers of the vision tower too. Those are left out only if B is zero.
    """
    known = {layout: [path for path in peft.layers if path.startswith(start)] for layout, start in BLOCKS.items()}
    layout = max(known, key=lambda name: len(known[name]))
    others = [path for path in peft.layers if path not in known[layout]]
    busy = [path for path in others if peft.source.read(peft.layers[path].b.name).any()]
    if busy or not known[layout]:
        raise UserError(
            f"{peft.folder}: {len(busy or others)} adapted layers are not in the language model's blocks "
            f"({first_of(busy or others)}), the only ones our adapters cover. `visalign fuse` merges all of it into a model."
        )
    names = {tensor.name for path in known[layout] for tensor in (peft.layers[path].a, peft.layers[path].b)}
    source = replace(peft.source, entries={name: peft.source.entries[name] for name in peft.source.entries if name in names})
    return (
        layout,
        source,
        {"left out": f"{len(others)} layers elsewhere whose B is zero, so they have no effect"} if others else {},
    )


def _common(peft: PeftAdapter, source: Source) -> tuple[int, float]:
    """The rank and the scale that all layers have."""
    found = {(layer.rank, layer.scale) for layer in peft.layers.values() if layer.a.name in source.tensors}
    if len(found) > 1:
        raise UserError(
            f"{peft.folder}: its layers have ranks from {min(found)[0]} to {max(found)[0]}, or several scales; ours have "
            "one rank and one scale. `visalign fuse` merges it into a model."
        )
    return found.pop()


def _check_linears(folder: Path, keys: list[str]) -> None:
    strange = [key for key in keys if key.removeprefix(OURS).partition(".")[2] not in LINEARS]
    if strange:
        block, name = strange[0].removeprefix(OURS).split(".", 1)
        raise UserError(f"{folder}: {len(strange)} layers are unknown, the first in block {block}: {unknown(name, LINEARS)}")


def _recorded(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The PEFT layout and config that our config records, if it was converted from PEFT."""
    recorded = config.get("peft", {})
    if recorded and not (
        isinstance(recorded, dict) and recorded.get("layout") in BLOCKS and isinstance(recorded.get("config"), dict)
    ):
        raise UserError(f"{folder / CONFIG}: peft should have PEFT's layout and config, got something else.")
    return recorded


def _same_lora(config: dict[str, Any], parameters: Parameters, folder: Path) -> bool:
    """Whether PEFT's config has the same rank and scale as ours."""
    lora = read_lora(config, folder / CONFIG)
    return (lora.r, lora.scale(lora.r)) == (parameters.rank, parameters.scale)


def _describe(parameters: Parameters, layers: list[str]) -> dict[str, Any]:
    """A config for PEFT, with full paths of layers, so that none of the vision tower match."""
    alpha = parameters.scale * parameters.rank
    return {
        "peft_type": "LORA",
        "inference_mode": True,
        "r": parameters.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": layers,
    }


def _trained_on(model: Path) -> dict[str, str]:
    return {**stated(model), "base_fingerprint": fingerprint(model), "source_fingerprint": source_fingerprint(model)}


def _about(kind: str, keys: list[str], rank: int, scale: float) -> dict[str, Any]:
    return {"adapter": kind, "layers": len(keys), "tensors": 2 * len(keys), "rank": rank, "scale": scale}


def _write(
    conversion: Conversion, file: Path, config: dict[str, Any], metadata: dict[str, str], check: Callable[[Path], object]
) -> dict[str, str]:
    """Write the folder, `check` it, and compare every tensor with its source."""
    size = sum(tensor.nbytes for tensor in conversion.tensors)
    with new_folder(file.parent, conversion.source.folder) as folder:
        with meter("converting", size) as on_bytes:
            write_safetensors(folder / file.name, conversion.tensors, conversion.produce, metadata, on_bytes)
        write_json(folder / CONFIG, config)
        check(folder)
        written = open_source(folder / file.name)
        for move in conversion.moves:
            back = move.rule.change.inverse.apply(written.read(move.target.name), move.source.shape)
            if digest(back) != digest(conversion.source.read(move.source.name)):
                raise UserError(f"{file.parent}: {move.target.name} differs from what was written. Is the disk damaged?")
    count = len(conversion.moves)
    return {
        "verified": f"{count} of {count} tensors equal the source's, bit for bit",
        "output": f"{file.parent}, {gigabytes(size)}",
    }
