"""Common part of all conversions to MLX.

Once a converter has read names and config: write the weights, carry over other files, verify, summarise.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mlx_visalign.convert.io.assembled import renamed
from mlx_visalign.convert.io.folder import check_output, new_folder, write_json, write_weights
from mlx_visalign.convert.io.source import Source
from mlx_visalign.convert.layouts.llava_names import LAYOUTS
from mlx_visalign.convert.layouts.processor import complete_processor
from mlx_visalign.convert.layouts.table import Plan, Table
from mlx_visalign.convert.steps.conversion import Conversion
from mlx_visalign.convert.steps.dry_run import NAMES, describe, gigabytes, quantised
from mlx_visalign.convert.steps.parity import compare_logits
from mlx_visalign.convert.steps.quantize import BITS, GROUP_SIZES, Quantization
from mlx_visalign.convert.steps.verify import verify_checksums
from mlx_visalign.data.images import Aspect
from mlx_visalign.data.prompt_template import Template
from mlx_visalign.models import families
from mlx_visalign.models.chat_template import choose
from mlx_visalign.models.model_folder import refuse, remarks, what_is_wrong
from mlx_visalign.utils.console import progress, say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.formatting import counted, in_a_row
from mlx_visalign.utils.schema import convert

OURS = "visalign"  # our section of config.json: template, aspect, source_fingerprint and source_layout
CODES = {name: code for code, name in NAMES.items()}


@dataclass(frozen=True)
class Origin:
    """A source model as a converter has read it.

    source            the weights; `layout`, `table` and `plan` are the name, table and plan of their layout
    config            the completed config.json
    carry             copies tokenizer and image settings into a new folder that has its config.json; returns the files' names
    tokenizer_folder  where the tokenizer comes from
    source_config     the config.json as published, which may name the template that the model was trained with
    """

    source: Source
    layout: str
    table: Table
    plan: Plan
    config: dict[str, Any]
    carry: Callable[[Path], list[str]]
    tokenizer_folder: Path
    source_config: Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of every conversion to MLX."""
    parser.add_argument("--mlx-path", metavar="OUT", default="mlx_model", help="output folder (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        help="float type of what is not quantised (default: %(default)s)",
    )
    parser.add_argument("-q", "--quantize", action="store_true", help="quantise the language model")
    parser.add_argument("--q-bits", type=int, choices=BITS, help="bits per weight (default: 4)")
    parser.add_argument("--q-group-size", type=int, choices=GROUP_SIZES, help="weights per scale (default: 64)")
    parser.add_argument("--q-everything", action="store_true", help="quantise vision tower and projector too")
    parser.add_argument(
        "--template", choices=get_args(Template), help="prompt template (default: the source's, or the family's)"
    )
    parser.add_argument("--aspect", choices=get_args(Aspect), help="how images become square (default: the source's, or pad)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan from the files' headers and write nothing")
    parser.add_argument(
        "--verify",
        nargs="?",
        const="checksums",
        choices=("checksums", "logits"),
        help="compare every tensor with the source; `logits`: also compare logits with transformers",
    )


def to_mlx(origin: Origin, options: argparse.Namespace) -> dict[str, Any]:
    """Convert or plan. Returns the summary as a dict.

    `options` are those of `add_arguments`.
    """
    conversion = Conversion(origin.source, origin.plan, CODES[options.dtype], _quantization(options))
    ours, prompting = _prompting(origin, options)
    output = Path(options.mlx_path)
    if options.dry_run:
        check_output(output, origin.source.folder)
        return describe(origin.source, origin.layout, origin.plan, conversion) | prompting
    started = time.perf_counter()
    with new_folder(output, origin.source.folder) as folder:
        size = sum(tensor.nbytes for tensor in conversion.tensors)
        with meter("converting", size) as on_bytes:
            write_weights(folder, conversion.tensors, conversion.produce, {"format": "mlx"}, on_bytes)
        seconds = time.perf_counter() - started
        ours |= {"source_fingerprint": conversion.fingerprint, "source_layout": origin.layout}
        write_json(folder / "config.json", _config(origin.config, conversion, options.dtype, ours))
        carried = origin.carry(folder)
        missing = complete_processor(folder, origin.config)
        refuse(output, what_is_wrong(folder, origin.config))
        checked = _verify(origin, conversion, folder, options.verify)
    return {
        "tensors": f"all {len(origin.plan.moves)} filled, {len(origin.plan.dropped)} of the source dropped on purpose",
        "precision": _precision(conversion, options.dtype),
        **({"quantised": quantised(conversion)} if conversion.quantization else {}),
        "carried over": ", ".join(carried) or "nothing",
        **({"missing": _missing(missing, origin)} if missing else {}),
        **prompting,
        **checked,
        "fingerprint": conversion.fingerprint,
        "time": f"{seconds:.1f} s, {size / 1e6 / seconds:.0f} MB/s",
        "output": f"{output}, {gigabytes(size)}",
    }


@contextmanager
def meter(title: str, size: int) -> Iterator[Callable[[int], None]]:
    """A progress bar in MB, advanced in bytes."""
    done = 0
    with progress(title, max(1, size // 10**6), unit="MB") as bar:

        def on_bytes(count: int) -> None:
            nonlocal done
            if whole := (done + count) // 10**6 - done // 10**6:
                bar.advance(whole)
            done += count

        yield on_bytes


def _quantization(options: argparse.Namespace) -> Quantization | None:
    if options.quantize:
        return Quantization(options.q_bits or 4, options.q_group_size or 64, options.q_everything)
    if options.q_bits or options.q_group_size or options.q_everything:
        raise UserError("--q-bits, --q-group-size and --q-everything need -q.")
    return None


def _prompting(origin: Origin, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """Template and aspect (as asked for, the source's, or the family's), and summary lines on them."""
    before: Any = origin.config.get(OURS, {})
    if not isinstance(before, dict):
        raise UserError(f"config.json: {OURS} should be an object with template and aspect, got {before!r}.")
    for name, kind in (("template", Template), ("aspect", Aspect)):
        convert(before.get(name), kind | None, f"config.json: {OURS}.{name}")
    source_config = {**origin.source_config, "model_type": origin.config["model_type"]}
    cure = "Choose one with --template to use it anyway."
    choice = choose(origin.tokenizer_folder, source_config, options.template, before.get("template"), cure)
    found = {"template": choice.template, "aspect": options.aspect or before.get("aspect", "pad")}
    families.find(source_config["model_type"]).check_aspect(found["aspect"], origin.tokenizer_folder)
    if before.get("fused"):
        found["fused"] = True
        if options.quantize:
            say(
                f"Warning: an adapter was merged into {origin.source.folder}, and rounding to {options.q_bits or 4} bits loses "
                "most of its small change. Quantise the model without it, and keep the adapter beside it."
            )
    said = [f"{choice.template}{choice.note and f' ({choice.note})'}", *remarks(origin.tokenizer_folder, source_config)]
    return found, {"template": "; ".join(said)}


def _missing(names: list[str], origin: Origin) -> str:
    """Also warns at once, since a line of the summary is easily overlooked."""
    said = f"{in_a_row(names)}: {origin.tokenizer_folder} has none. Copy them here from the original model to use it"
    say(f"Warning: the new folder lacks {said}.")
    return said


def _config(config: dict[str, Any], conversion: Conversion, dtype: str, ours: dict[str, Any]) -> dict[str, Any]:
    """The new config.json: the dtype once, quantisation in both places that are read, and our own section."""
    parts = {name: _without_dtype(config[name]) for name in ("text_config", "vision_config")}
    found = _without_dtype(config) | parts | {"torch_dtype": dtype, OURS: ours}
    if conversion.quantization is not None:
        found |= {"quantization": conversion.quantization.config, "quantization_config": conversion.quantization.config}
    return found


def _without_dtype(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype")}


def _precision(conversion: Conversion, dtype: str) -> str:
    flushed = conversion.loss.flushed
    return f"{dtype}; {counted(flushed, 'value')} became zero" if flushed else f"{dtype}, no overflow or underflow"


def _hugging_face(origin: Origin) -> Source:
    """The source with names that transformers knows."""
    if origin.layout in LAYOUTS:
        return origin.source
    table = LAYOUTS["classic"].table(origin.config["model_type"]).inverse
    found = {move.source.name: table.find(move.target.name) for move in origin.plan.moves}
    return renamed(origin.source, {name: pair[1] for name, pair in found.items() if pair})


def _verify(origin: Origin, conversion: Conversion, folder: Path, what: str | None) -> dict[str, str]:
    if what is None:
        return {}
    found = {"verified": verify_checksums(conversion, origin.table, folder)}
    if what == "logits":
        exact = conversion.quantization is None and all(move.source.dtype == conversion.dtype for move in conversion.moves)
        found["logits"] = compare_logits(_hugging_face(origin), origin.config, folder, exact)
    return found
