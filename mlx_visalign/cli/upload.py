"""Upload an adapter or model to the Hub."""

import argparse
from pathlib import Path

from mlx_visalign.cli.output import Result, plain
from mlx_visalign.utils.arguments import link_option

EXAMPLES = (
    "--path runs/seva/adapter --upload-repo me/llava-seva --run runs/seva",
    "--path llava-seva --upload-repo me/llava-seva-mlx --base-model llava-hf/llava-1.5-7b-hf --private",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--path", metavar="FOLDER", required=True, help="an adapter, ours or PEFT's, or a model")
    parser.add_argument("--upload-repo", metavar="NAME", required=True, help="the repository; created if it does not exist")
    parser.add_argument("--run", type=Path, metavar="RUN", help="the run it comes from; its report is used for the model card")
    parser.add_argument("--base-model", metavar="NAME", help="the base model's name on the Hub, for the model card")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry-run", action="store_true", help="show model card and files; write and send nothing")
    link_option(parser)


def run(options: argparse.Namespace) -> Result:
    from rich.console import Group

    from mlx_visalign.reporting.upload import preview, upload

    folder = Path(options.path)
    if not options.dry_run:
        return Result.from_dict(upload(folder, options.upload_repo, options.run, options.base_model, options.private))
    found = preview(folder, options.upload_repo, options.run, options.base_model)
    sizes = [f"{size:>15,}  {name}" for name, size in found["files"].items()]
    head = f"Would upload to {found['repository']}, as {found['kind']}: {found['bytes']:,} bytes in {len(sizes)} files:"
    return Result(found, Group(*map(plain, (head, *sizes, "", "README.md:", "", found["card"]))))
