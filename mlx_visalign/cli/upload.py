"""Upload an adapter or a model to the Hugging Face Hub, with a model card."""

import argparse
from pathlib import Path

from mlx_visalign.cli.output import Result, plain, told
from mlx_visalign.utils.arguments import link_option

EXAMPLES = (
    "--path runs/seva/adapter --upload-repo me/llava-seva --run runs/seva",
    "--path llava-seva --upload-repo me/llava-seva-mlx --base-model llava-hf/llava-1.5-7b-hf --private",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--path", metavar="FOLDER", required=True, help="an adapter, ours or PEFT's, or a model")
    parser.add_argument("--upload-repo", metavar="NAME", required=True, help="the repository; it is made if need be")
    parser.add_argument("--run", type=Path, metavar="RUN", help="the run it comes from, whose report fills the card")
    parser.add_argument("--base-model", metavar="NAME", help="on the Hub, for the card: the model it was made from")
    parser.add_argument("--private", action="store_true", help="a new repository is for you alone")
    parser.add_argument("--dry-run", action="store_true", help="show the card and the files; nothing is written or sent")
    link_option(parser)


def run(options: argparse.Namespace) -> Result:
    from rich.console import Group

    from mlx_visalign.reporting.upload import preview, upload

    folder = Path(options.path)
    if not options.dry_run:
        return told(upload(folder, options.upload_repo, options.run, options.base_model, options.private))
    found = preview(folder, options.upload_repo, options.run, options.base_model)
    sizes = [f"{size:>15,}  {name}" for name, size in found["files"].items()]
    head = f"Would be uploaded to {found['repository']}, as {found['kind']}, {found['bytes']:,} bytes in {len(sizes)} files:"
    return Result(found, Group(*map(plain, (head, *sizes, "", "README.md:", "", found["card"]))))
