"""LLaVA-1.5 in its authors' layout to MLX.

SeVa, CSR and SIMA publish in it too. Reads merged models and LoRA folders (with --base), in safetensors or .bin, with or
without their vision tower. Hugging Face's layout has tokens of their own for <image> and <pad>: their rows in the embedding
and the head, and those that pad to a multiple of 64, are the mean of all rows, unless an export saved the rows beside the
model. `visalign convert export --layout original` is the inverse.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mlx_visalign.convert.io.assembled import Assembled
from mlx_visalign.convert.io.folder import check_output
from mlx_visalign.convert.layouts import original
from mlx_visalign.convert.layouts.clip_names import vision_config
from mlx_visalign.convert.layouts.original_config import OURS, check_original, hugging_face, vocabulary
from mlx_visalign.convert.layouts.original_preprocessing import carry_preprocessing, find_tokenizer
from mlx_visalign.convert.layouts.peft_folder import add_base_projector, is_peft, require_beside
from mlx_visalign.convert.layouts.table import plan
from mlx_visalign.convert.steps.to_mlx import Origin, to_mlx
from mlx_visalign.convert.steps.to_mlx import add_arguments as add_common_arguments
from mlx_visalign.models import families
from mlx_visalign.models.hub import add_revision, find_model
from mlx_visalign.models.model_folder import damaged_files, refuse
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json

EXAMPLES = (
    "--hf-path liuhaotian/llava-v1.5-7b --mlx-path llava-mlx",
    "--hf-path seva-lora --base liuhaotian/llava-v1.5-7b --mlx-path seva-mlx --dry-run",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hf-path", "--model", metavar="MODEL", required=True, help="LLaVA in the authors' layout: a folder or a hub name"
    )
    add_revision(parser)
    parser.add_argument("--base", metavar="MODEL", help="the model that a LoRA or a lone projector was trained on")
    parser.add_argument(
        "--vision-tower", metavar="MODEL", help="for weights without one (default: the CLIP that config.json names)"
    )
    add_base_projector(parser)
    add_common_arguments(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Convert or plan. Returns the summary as a dict."""
    folder = find_model(options.hf_path, options.revision)
    base = find_model(options.base) if options.base else None
    for source in filter(None, (folder, base)):
        check_output(Path(options.mlx_path), source)
    projector = require_beside(folder, options.base_projector) if is_peft(folder) else None
    origin = understand(folder, base, options.vision_tower)
    said = {"projector": projector} if projector else {}
    return _about(origin, folder, base) | said | to_mlx(origin, options)


def understand(folder: Path, base: Path | None = None, vision_tower: str | None = None) -> Origin:
    """Read a model in the authors' layout.

    Its config is converted to Hugging Face's; its weights may lie in several folders.

    Raises `UserError` for other models, and for parts that are missing or do not fit together.
    """
    config = read_json((folder if base is None or (folder / "config.json").is_file() else base) / "config.json")
    check_original(config)
    weights = original.gather(folder, base)
    weights, vision = _with_tower(weights, config, vision_tower)
    if is_peft(folder):
        weights = original.with_adapter(weights, folder)
    original.check_projector(weights)
    vocab_size, added = vocabulary(config), original.added_rows(folder)
    described = hugging_face(config, vision, added=max((entry.tensor.shape[0] for entry in added.values()), default=None))
    weights = original.with_vocabulary(weights, vocab_size, described["text_config"]["vocab_size"], added)
    found = plan(weights.tensors, original.TABLE, families.parameters(described), str(folder))
    places = [folder] if base is None else [folder, base]
    tokenizer = find_tokenizer(places)
    refuse(tokenizer, damaged_files(tokenizer))
    source_config = {"_name_or_path": folder.name} | config
    carry = partial(carry_preprocessing, places)
    return Origin(weights, "original", original.TABLE, found, described, carry, tokenizer, source_config)


def _with_tower(weights: Assembled, config: dict[str, Any], named: str | None) -> tuple[Assembled, dict[str, Any]]:
    """The weights with a vision tower (their own, or a CLIP's), and its config."""
    own = {
        name.removeprefix(original.TOWER): tensor.shape
        for name, tensor in weights.tensors.items()
        if name.startswith(original.TOWER)
    }
    if own and named:
        raise UserError(f"{weights.folder} has its own vision tower: omit --vision-tower.")
    if own:
        return weights, _ours(config).get("vision_config") or vision_config(own)
    name = named or str(config["mm_vision_tower"])
    folder = find_model(name)
    if not folder.is_dir():
        raise UserError(f"{weights.folder} has no vision tower, and {name} was not found: give its folder with --vision-tower.")
    entries, vision = original.read_tower(folder)
    return replace(weights, entries=weights.entries | entries), vision


def _ours(config: dict[str, Any]) -> dict[str, Any]:
    """The section that our own export writes into the config."""
    ours = config.get(OURS, {})
    if not isinstance(ours, dict):
        raise UserError(f"config.json: {OURS} should be an object, got {ours!r}.")
    return ours


def _about(origin: Origin, folder: Path, base: Path | None) -> dict[str, str]:
    """Summary lines for this layout: the base, and the rows added to the vocabulary."""
    rows = origin.config["text_config"]["vocab_size"] - origin.config["image_token_index"]
    kept = (folder / original.ROWS).is_file()
    made = f"those of {original.ROWS}" if kept else "each the mean of all rows (Hugging Face's script draws them, unseeded)"
    merged = {} if base is None else {"base": f"{base}, with the changes of {folder}"}
    return merged | {"vocabulary": f"{rows} rows added for <image>, <pad> and padding: {made}"}
