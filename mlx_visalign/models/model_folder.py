"""Consistency checks of a model folder's small files.

They run before and after a conversion and before loading. A model whose tokenizer, preprocessing and weights do not match
loads and answers, only worse. No weights are read here.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mlx_visalign.data.prompt_template import IMAGE
from mlx_visalign.models.chat_template import end_token, stated_by
from mlx_visalign.utils.errors import UserError, listed
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.lfs_pointers import is_pointer, pointer_said
from mlx_visalign.utils.schema import shown

PROCESSOR, IMAGES, TOKENIZER = "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them has the vocabulary
TEXTS = (TOKENIZER, IMAGES, PROCESSOR, "generation_config.json", "special_tokens_map.json", "added_tokens.json")
OTHERS = ("config.json", "chat_template.json", "chat_template.jinja", "merges.txt", "video_preprocessor_config.json")
WEIGHTS = ("*.safetensors", "*.index.json")
TORCH = ("pytorch_model*.bin", "adapter_model.bin", "non_lora_trainables.bin", "mm_projector.bin")
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def require_whole(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder in which `what_is_wrong` finds any fault.

    The `UserError` names 20 faults at most and counts the others.
    """
    refuse(folder, what_is_wrong(folder, config))


def refuse(folder: Path, wrong: list[str]) -> None:
    """Raise a `UserError` with a folder's faults, if any."""
    if len(wrong) == 1:
        raise UserError(f"{folder}: {wrong[0]}")
    if wrong:
        raise UserError(listed(f"{len(wrong)} things are wrong with {folder}", wrong), wrong)


def what_is_wrong(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Every fault of a LLaVA folder, one sentence each.

    A fault is what makes the model fail or answer worse; missing files are left to `missing_parts`.

    config  the folder's config.json, in Hugging Face's form
    """
    damaged = damaged_files(folder)
    if damaged:
        return damaged  # their contents cannot be compared
    return [*_quantised(config), *_missing_shards(folder), *_tokens_and_rows(folder, config), *_pixels(folder, config)]


def remarks(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Disagreements about the end token, one sentence each."""
    end, said = end_token(folder), []
    stated = stated_by(folder, config)
    if end and stated and stated.end and not stated.end.startswith(end):
        theirs = stated.end.partition("\n")[0][:20]
        said.append(f"{stated.where} ends an answer with {theirs!r}, but answers stop at the tokenizer's end token, {end!r}")
    known = _known_tokens(folder) or {}
    stops = [token for token in _as_list(_optional(folder, TEXTS[3]).get("eos_token_id")) if isinstance(token, int)]
    if stops and end in known and known[end] not in stops:
        said.append(
            f"generation_config.json ends an answer at {' or '.join(map(str, stops))}, but answers stop at the "
            f"tokenizer's end token, {known[end]} ({end})"
        )
    return said


def missing_parts(folder: Path) -> list[str]:
    """Names of missing tokenizer and preprocessing files."""
    tokenizer = [] if any((folder / name).is_file() for name in TOKENIZER_FILES) else [TOKENIZER_FILES[0]]
    return tokenizer + [name for name in (TOKENIZER, IMAGES) if not (folder / name).is_file()]


def damaged_files(folder: Path) -> list[str]:
    """Git LFS pointers and unreadable files, one sentence each."""
    files = [folder / name for name in (*TOKENIZER_FILES, *TEXTS, *OTHERS)]
    files += [file for pattern in WEIGHTS for file in sorted(folder.glob(pattern))]
    if not any(folder.glob("*.safetensors")):  # which are preferred to torch's files
        files += [file for pattern in TORCH for file in sorted(folder.glob(pattern))]
    pointers = [file.name for file in dict.fromkeys(files) if is_pointer(file)]
    if pointers:
        first = pointer_said(Path(pointers[0]))
        return [first, *(f"{name} is a Git LFS pointer too." for name in pointers[1:])]
    return [said for name in TEXTS if (said := _unreadable(folder / name))] + _bad_tokenizer(folder)


def _unreadable(file: Path) -> str | None:
    try:
        if file.exists():
            read_json(file)
    except UserError as error:
        return str(error).replace(f"{file}", file.name, 1)
    return None


def _bad_tokenizer(folder: Path) -> list[str]:
    file = folder / TOKENIZER_FILES[0]
    if not file.is_file():
        return []
    try:
        vocabulary_of(file)
    except UserError as error:
        return [str(error)]
    return []


def vocabulary_of(file: Path) -> dict[str, int]:
    """The ids of a tokenizer.json's tokens, by their texts.

    Raises `UserError` if the tokenizers library cannot load the file.
    """
    try:
        about = file.stat()
        return _vocabulary(file, about.st_mtime_ns, about.st_size)
    except Exception as error:  # the library raises a bare Exception
        raise UserError(f"{file.name} cannot be read as a tokenizer ({error}). Download it again.") from None


@cache
def _vocabulary(file: Path, changed: int, size: int) -> dict[str, int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)


def _quantised(config: Mapping[str, Any]) -> Iterator[str]:
    """Weights quantised by anything but MLX, which writes its settings under both names."""
    found = config.get("quantization_config")
    method = found.get("quant_method") if isinstance(found, dict) else None
    if method is not None and "quantization" not in config:
        yield (
            f"the weights are quantised by {shown(method)}, which MLX does not read: take the original weights, and quantise "
            "them during the conversion, with -q."
        )


def _missing_shards(folder: Path) -> Iterator[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        placed = read_json(index).get("weight_map")
        names = sorted({str(name) for name in placed.values()}) if isinstance(placed, dict) else []
        lost = [name for name in names if not (folder / name).is_file()]
        yield from (f"the shard {name} is missing: download the folder again." for name in lost)


def _tokens_and_rows(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """Token ids beyond the embedding's rows, and image token ids that differ between config.json and the tokenizer."""
    text = config.get("text_config")
    rows = text.get("vocab_size") if isinstance(text, dict) else None
    if not isinstance(text, dict) or not isinstance(rows, int) or isinstance(rows, bool):
        return  # other checks report this
    image = config.get("image_token_index", config.get("image_token_id"))
    if isinstance(image, int) and image >= rows:
        yield _beyond("image_token_index", image, rows)
    for where, settings in (("", config), ("text_config.", text), ("generation_config.json: ", _optional(folder, TEXTS[3]))):
        for name in SPECIAL:
            for token in _as_list(settings.get(name)):
                if isinstance(token, int) and token >= rows:
                    yield _beyond(f"{where}{name}", token, rows)
    known = _known_tokens(folder)
    if known is None:
        return
    largest = max(known, key=lambda token: known[token], default=None)
    if largest is not None and known[largest] >= rows:
        over = sum(number >= rows for number in known.values())
        yield (
            f"the tokenizer is larger than the model: {shown(largest)} is its token {known[largest]} ({over} of its tokens do "
            f"not fit), but the embedding has {rows} rows. Use this model's own tokenizer, or resize the embedding first "
            "(transformers: resize_token_embeddings)."
        )
    if IMAGE not in known:
        yield f"the tokenizer has no token {IMAGE}, which stands for the image. Use this model's own tokenizer."
    elif isinstance(image, int) and known[IMAGE] != image:
        yield f"{IMAGE} is token {known[IMAGE]} in the tokenizer, but {image} in config.json (image_token_index)."


def _beyond(name: str, token: int, rows: int) -> str:
    return (
        f"{name} is {token}, but the embedding has {rows} rows, 0 to {rows - 1}: the tokenizer or config.json belongs to "
        "another model, or the embedding was never resized (transformers: resize_token_embeddings)."
    )


def _known_tokens(folder: Path) -> dict[str, int] | None:
    """Token ids by their texts: all, or only the added ones if there is nothing but SentencePiece's file. None: unknown."""
    if (folder / TOKENIZER_FILES[0]).is_file():
        return vocabulary_of(folder / TOKENIZER_FILES[0])
    added = _optional(folder, TOKENIZER).get("added_tokens_decoder")
    if not isinstance(added, dict) or not added:
        return None
    found = {token.get("content"): number for number, token in added.items() if isinstance(token, dict)}
    return {token: int(number) for token, number in found.items() if isinstance(token, str) and str(number).isdecimal()}


def _pixels(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """Image sizes and normalisation that do not fit the vision tower."""
    vision, processor = config.get("vision_config"), _optional(folder, PROCESSOR)
    nested = processor.get("image_processor")
    images = _optional(folder, IMAGES) or (nested if isinstance(nested, dict) else {})
    if not isinstance(vision, dict):
        return
    file = IMAGES if (folder / IMAGES).is_file() else PROCESSOR
    if images:
        side, wanted = _side(images), vision.get("image_size")
        if isinstance(side, int) and isinstance(wanted, int) and side != wanted:
            yield f"{file} makes images of {side} pixels, but config.json says the tower takes {wanted}."
        lost = [name for name in ("image_mean", "image_std") if not images.get(name)]
        if lost:
            yield f"{file} has no {' and no '.join(lost)}: copy it from the original model."
    patch, known = processor.get("patch_size"), vision.get("patch_size")
    if isinstance(patch, int) and isinstance(known, int) and patch != known:
        yield f"{PROCESSOR} says patch_size {patch}, but config.json's vision_config says {known}."


def _side(images: Mapping[str, Any]) -> Any:
    """The image size as `images.Preprocessing.from_config` reads it."""
    size = images.get("crop_size") or images.get("size")
    return size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size


def _optional(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name) if (folder / name).is_file() else {}


def _as_list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else [value]
