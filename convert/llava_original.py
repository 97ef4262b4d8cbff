"""LLaVA-1.5 in its authors' layout, which SeVa, CSR and SIMA publish in too, to a folder that MLX loads.

Merged models and LoRA folders (with --base), in safetensors or .bin, with their vision tower or without it. <image> and
<pad> are tokens of their own in Hugging Face's layout: their rows in the embedding and the head, and those that fill up
to a multiple of 64, are the mean of all rows, unless the folder has the rows that an export left beside it.
`visalign convert export --layout original` is the way back.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mlx_visalign.convert import original
from mlx_visalign.convert.assembled import Assembled
from mlx_visalign.convert.clip_names import vision_config
from mlx_visalign.convert.folder import check_output
from mlx_visalign.convert.original_config import OURS, check_original, hugging_face, vocabulary
from mlx_visalign.convert.original_words import bring_words_and_pixels, words_among
from mlx_visalign.convert.peft_folder import add_base_projector, is_peft, require_beside
from mlx_visalign.convert.table import plan
from mlx_visalign.convert.to_mlx import Origin, to_mlx
from mlx_visalign.convert.to_mlx import add_arguments as add_common_arguments
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
    parser.add_argument("--hf-path", "--model", metavar="MODEL", required=True, help="a folder or a hub name; only read")
    add_revision(parser)
    parser.add_argument(
        "--base", metavar="MODEL", help="of a LoRA folder, or of one with a projector alone: what it was trained on"
    )
    parser.add_argument("--vision-tower", metavar="MODEL", help="for weights without one; the CLIP that config.json names")
    add_base_projector(parser)
    add_common_arguments(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Convert, or only plan to. Returns figures by name, to show."""
    folder = find_model(options.hf_path, options.revision)
    base = find_model(options.base) if options.base else None
    for source in filter(None, (folder, base)):
        check_output(Path(options.mlx_path), source)
    projector = require_beside(folder, options.base_projector) if is_peft(folder) else None
    origin = understand(folder, base, options.vision_tower)
    said = {"projector": projector} if projector else {}
    return _about(origin, folder, base) | said | to_mlx(origin, options)


def understand(folder: Path, base: Path | None = None, vision_tower: str | None = None) -> Origin:
    """A model of the authors': its config as Hugging Face's, its weights from all places where they lie.

    Raises `UserError` for other models, and for parts that are missing or do not fit together.
    """
    config = read_json((folder if base is None or (folder / "config.json").is_file() else base) / "config.json")
    check_original(config)
    weights = original.gather(folder, base)
    weights, vision = _with_tower(weights, config, vision_tower)
    if is_peft(folder):
        weights = original.with_adapter(weights, folder)
    original.check_projector(weights)
    words, added = vocabulary(config), original.added_rows(folder)
    described = hugging_face(config, vision, added=max((entry.tensor.shape[0] for entry in added.values()), default=None))
    weights = original.with_vocabulary(weights, words, described["text_config"]["vocab_size"], added)
    found = plan(weights.tensors, original.TABLE, families.parameters(described), str(folder))
    places = [folder] if base is None else [folder, base]
    words = words_among(places)
    refuse(words, damaged_files(words))
    told = {"_name_or_path": folder.name} | config
    bring = partial(bring_words_and_pixels, places)
    return Origin(weights, "original", original.TABLE, found, described, bring, words, told)


def _with_tower(weights: Assembled, config: dict[str, Any], named: str | None) -> tuple[Assembled, dict[str, Any]]:
    """The weights with a vision tower, their own or another CLIP's, and its config."""
    own = {
        name.removeprefix(original.TOWER): tensor.shape
        for name, tensor in weights.tensors.items()
        if name.startswith(original.TOWER)
    }
    if own and named:
        raise UserError(f"{weights.folder} has a vision tower of its own: leave --vision-tower out.")
    if own:
        return weights, _ours(config).get("vision_config") or vision_config(own)
    name = named or str(config["mm_vision_tower"])
    folder = find_model(name)
    if not folder.is_dir():
        raise UserError(f"{weights.folder} has no vision tower, and {name} is not here: say with --vision-tower where it is.")
    entries, vision = original.read_tower(folder)
    return replace(weights, entries=weights.entries | entries), vision


def _ours(config: dict[str, Any]) -> dict[str, Any]:
    """What our own export says in the config."""
    ours = config.get(OURS, {})
    if not isinstance(ours, dict):
        raise UserError(f"config.json: {OURS} should be an object, got {ours!r}.")
    return ours


def _about(origin: Origin, folder: Path, base: Path | None) -> dict[str, str]:
    """What is particular to these layouts: where the weights come from, and the rows that no source has."""
    rows = origin.config["text_config"]["vocab_size"] - origin.config["image_token_index"]
    kept = (folder / original.ROWS).is_file()
    made = f"those of {original.ROWS}" if kept else "each the mean of all rows (Hugging Face's own script draws them, unseeded)"
    merged = {} if base is None else {"base": f"{base}, with what {folder} changes"}
    return merged | {"vocabulary": f"{rows} rows added for <image>, <pad> and to fill up: {made}"}
