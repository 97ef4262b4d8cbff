"""Writes the same LLaVA as Hugging Face folders in every layout of names, in one file or shards, safetensors or .bin."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from mlx.utils import tree_flatten
from random_llava import CONFIG, random_llava
from safetensors.numpy import save_file

LAYOUTS = ("classic", "classic-flat", "nested", "nested-flat")
TINY = Path(__file__).parents[2] / "mlx_visalign" / "tiny_world" / "tiny" / "llava"
WORDS_AND_PIXELS = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


def write_hf(
    folder: Path,
    layout: str = "classic",
    model: Any = None,
    config: dict[str, Any] = CONFIG,
    dtype: type = np.float16,
    files: str = "one",
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    """`files`: "one" (model.safetensors), "shards" (of safetensors, with an index) or "bin" (the same of torch's).

    `extra` tensors are added under their own names, or take the place of those that are there.
    """
    tensors = hf_tensors(model or random_llava(), layout, dtype) | (extra or {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if files == "one":
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        _write_shards(folder, tensors, files)
    return folder


# A random model that fits the words and pixels of the embedded one.
TALKING: dict[str, Any] = CONFIG | {
    "image_token_index": 4,
    "text_config": CONFIG["text_config"] | {"vocab_size": 640},
    "vision_config": CONFIG["vision_config"] | {"image_size": 48, "patch_size": 8},
}


def write_talking(folder: Path, layout: str = "classic", **how: Any) -> Path:
    """A random LLaVA with a tokenizer and a processor that fit it."""
    write_hf(folder, layout, random_llava(config=TALKING), TALKING, **how)
    write_words_and_pixels(folder)
    return folder


def write_words_and_pixels(folder: Path) -> None:
    """Tokenizer and processor of the embedded tiny LLaVA."""
    for name in WORDS_AND_PIXELS:
        shutil.copyfile(TINY / name, folder / name)


def hf_tensors(model: Any, layout: str, dtype: type = np.float16) -> dict[str, np.ndarray]:
    """The model's parameters as torch has them, by their names in `layout`."""
    arrays = {name: np.array(value).astype(dtype) for name, value in tree_flatten(model.parameters())}
    return {hf_name(name, layout): _for_torch(array) for name, array in arrays.items()}


def _for_torch(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if array.ndim == 4 else array


def hf_name(name: str, layout: str) -> str:
    """The name in `layout` of a parameter of mlx-vlm's."""
    if layout.endswith("flat"):
        name = name.replace("vision_tower.vision_model.", "vision_tower.")
    if not layout.startswith("nested"):
        return name
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    return "model." + name.replace("language_model.model.", "language_model.")


def _write_shards(folder: Path, tensors: dict[str, np.ndarray], files: str) -> None:
    names = sorted(tensors)
    middle = len(names) // 2
    weight_map = {}
    for number, part in ((1, names[:middle]), (2, names[middle:])):
        ending = "pytorch_model-{:05d}-of-00002.bin" if files == "bin" else "model-{:05d}-of-00002.safetensors"
        file = folder / ending.format(number)
        _save({name: tensors[name] for name in part}, file)
        weight_map |= dict.fromkeys(part, file.name)
    index = "pytorch_model.bin.index.json" if files == "bin" else "model.safetensors.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _save(tensors: dict[str, np.ndarray], file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file(tensors, file, {"format": "pt"})
        return
    import torch

    torch.save({name: torch.tensor(array) for name, array in tensors.items()}, file)
