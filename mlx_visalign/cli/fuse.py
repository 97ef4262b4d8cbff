"""Merge an adapter into its base model."""

import argparse
from pathlib import Path

from mlx_visalign.cli.output import Result
from mlx_visalign.utils.arguments import MODEL, link_option

EXAMPLES = (
    "--model MODEL --adapter-path runs/seva/adapter --mlx-path llava-seva",
    "--model llava-4bit --adapter-path runs/seva/adapter --mlx-path llava-seva --dequantize",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help=f"{MODEL}; only read")
    parser.add_argument(
        "--adapter-path",
        metavar="FOLDER",
        required=True,
        help="an adapter: ours, PEFT's, or a LoRA folder in the original LLaVA format",
    )
    parser.add_argument("--mlx-path", metavar="OUT", required=True, help="folder for the merged model")
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), default="float16", help="%(default)s; bfloat16 is less precise"
    )
    parser.add_argument("--dequantize", action="store_true", help="write an unquantised model from a quantised one")
    parser.add_argument(
        "--allow-rounding", action="store_true", help="merge even where rounding loses over 10 %% of the adapter's change"
    )
    parser.add_argument(
        "--base-projector", action="store_true", help="keep the base's projector if the LoRA folder has no trained one"
    )
    parser.add_argument("--no-probe", action="store_true", help="skip comparing logits, which loads both models")
    link_option(parser)


def run(options: argparse.Namespace) -> Result:
    from mlx_visalign.convert.fuse import fuse
    from mlx_visalign.inference.policy import find_folder
    from mlx_visalign.models.hub import find_model
    from mlx_visalign.preflight.fused_check import compare_fused

    model = find_folder(options.model)
    adapter, output = find_model(options.adapter_path), Path(options.mlx_path)
    figures = fuse(
        model,
        adapter,
        output,
        options.dtype,
        options.dequantize,
        options.allow_rounding,
        options.base_projector,
    )
    if not options.no_probe:
        figures["probe"] = compare_fused(model, adapter, output)
    return Result.from_dict(figures)
