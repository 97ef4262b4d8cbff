"""Tokenizer and image settings of LLaVA-1.5 in the original layout.

The authors' code hard-wires what Hugging Face keeps in files. <image> and <pad> become tokens of their own after the
vocabulary, and images are padded to a square, which CLIP's own processor would crop. An export removes both tokens again.
"""

from pathlib import Path
from typing import Any

from mlx_visalign.convert.io.folder import carry, write_json
from mlx_visalign.data.prompt_template import IMAGE
from mlx_visalign.models.chat_template import as_jinja
from mlx_visalign.models.model_folder import IMAGES, TOKENIZER
from mlx_visalign.utils.errors import UserError, plainly
from mlx_visalign.utils.files import read_json, remove, save_pretrained, write_atomically

PAD = "<pad>"
SUPERSEDED = ("special_tokens_map.json", "added_tokens.json")  # older files, which would override the newer ones
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
END = "</s>"


def find_tokenizer(sources: list[Path]) -> Path:
    """The first folder with a tokenizer, else the first folder."""
    return next((source for source in sources if any((source / name).is_file() for name in TOKENIZER_FILES)), sources[0])


def carry_preprocessing(sources: list[Path], folder: Path) -> list[str]:
    """Carry over and complete tokenizer and image settings.

    They come from the first of `sources` that has a tokenizer. `folder` must have its config.json already: it has the ids
    that the two tokens must get. Returns the names of the copied files.
    """
    names = carry(find_tokenizer(sources), folder)
    config = read_json(folder / "config.json")
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        _add_tokens(folder, config["image_token_index"])
        write_atomically(folder / "chat_template.jinja", as_jinja(config["visalign"]["template"], END))
    write_json(folder / IMAGES, _image_settings(config["vision_config"]["image_size"], config["visalign"]["aspect"]))
    return names


def _add_tokens(folder: Path, first: int) -> None:
    from transformers import AddedToken, AutoTokenizer, LlamaTokenizer

    # For a LLaVA, AutoTokenizer reads a SentencePiece file without the space that LLaMA puts in front.
    reader: Any = AutoTokenizer if (folder / "tokenizer.json").is_file() else LlamaTokenizer
    try:
        tokenizer = reader.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception; others raise anything
        raise UserError(
            f"transformers cannot read the tokenizer ({plainly(error)}). Use the files of the original model."
        ) from None
    tokenizer.add_tokens(AddedToken(IMAGE, special=True, normalized=False), special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": AddedToken(PAD, special=True, normalized=False)})
    ids = tokenizer.convert_tokens_to_ids([IMAGE, PAD])
    if ids != [first, first + 1]:
        raise UserError(
            f"{IMAGE} and {PAD} would get the ids {ids}, but the model's vocabulary ends before {first}: tokenizer and weights "
            "are from different models."
        )
    for name in SUPERSEDED:
        remove(folder / name)
    save_pretrained(tokenizer, folder)


def _image_settings(size: int, aspect: str) -> dict[str, Any]:
    return {
        "image_processor_type": "LlavaImageProcessor",
        "do_pad": aspect == "pad",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }


def remove_added_tokens(folder: Path, first: int) -> None:
    """Remove the added tokens from a folder's tokenizer.

    Those with ids from `first` on, which the authors' code does not use.
    """
    tokenizer, settings = folder / "tokenizer.json", folder / TOKENIZER
    try:
        if tokenizer.is_file():
            found = read_json(tokenizer)
            write_json(tokenizer, found | {"added_tokens": [token for token in found["added_tokens"] if token["id"] < first]})
        if settings.is_file():
            write_json(settings, _without_added(read_json(settings), first))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{TOKENIZER} or tokenizer.json was not written by transformers: use the original model's.") from None
    for name in ("processor_config.json", "chat_template.jinja", *SUPERSEDED):
        remove(folder / name)


def _without_added(settings: dict[str, Any], first: int) -> dict[str, Any]:
    kept = {name: value for name, value in settings.items() if name not in ("image_token", "processor_class")}
    added = {number: token for number, token in kept.get("added_tokens_decoder", {}).items() if int(number) < first}
    return kept | {"pad_token": kept.get("unk_token", "<unk>"), "added_tokens_decoder": added}
