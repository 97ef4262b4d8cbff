"""LLaVA-1.5 and LLaVA-OneVision from Hugging Face to MLX.

Reads every layout of names that transformers has used.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from mlx_visalign.convert.io.folder import carry
from mlx_visalign.convert.io.source import Source, open_source
from mlx_visalign.convert.layouts.llava_config import complete
from mlx_visalign.convert.layouts.llava_names import LAYOUTS, find_layout
from mlx_visalign.convert.layouts.table import Table, dropped, plan
from mlx_visalign.convert.steps import to_mlx
from mlx_visalign.convert.steps.conversion import digest
from mlx_visalign.models import families
from mlx_visalign.models.hub import add_revision, find_model
from mlx_visalign.models.model_folder import require_whole
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json

EXAMPLES = (
    "--hf-path llava-1.5-7b-hf --mlx-path llava-mlx",
    "--hf-path llava-1.5-7b-hf --mlx-path llava-4bit -q --dry-run",
    "--hf-path llava-hf/llava-1.5-7b-hf --mlx-path llava-mlx --verify",
)
HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hf-path", "--model", metavar="MODEL", required=True, help="Hugging Face LLaVA: a folder or a hub name"
    )
    add_revision(parser)
    to_mlx.add_arguments(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Convert or plan. Returns the summary as a dict."""
    return to_mlx.to_mlx(understand(find_model(options.hf_path, options.revision)), options)


def understand(folder: Path) -> to_mlx.Origin:
    """A Hugging Face folder's config, weights and layout.

    Raises `UserError` for parts that are missing or do not fit together.
    """
    config = complete(read_json(folder / "config.json"))
    require_whole(folder, config)
    source = open_source(folder)
    if source.metadata.get("format") == "mlx":
        raise UserError(f"{folder} is already in MLX's layout. Give the folder that it was converted from.")
    layout = find_layout(source.tensors, config["model_type"])
    table = LAYOUTS[layout].table(config["model_type"])
    if config["tie_word_embeddings"]:
        table = _tie(source, table, config)
    found = plan(source.tensors, table, families.parameters(config), str(folder))
    return to_mlx.Origin(source, layout, table, found, config, partial(carry, folder), folder, config)


def _tie(source: Source, table: Table, config: dict[str, Any]) -> Table:
    """The table for tied embeddings.

    A head stored in spite of tying is dropped if it equals the embedding; otherwise it counts as untied, as in transformers.
    """
    names = [back[1] for name in (HEAD, EMBEDDING) if (back := table.inverse.find(name)) and back[1] in source.tensors]
    if len(names) < 2:
        return table
    if digest(source.read(names[0])) == digest(source.read(names[1])):
        return Table([dropped(names[0], "equals the embedding it is tied to"), *table.rules])
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    return table
