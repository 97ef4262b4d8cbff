"""A LLaVA folder on disk with random weights, the tiny world's tokenizer and 28-pixel images."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from PIL import Image
from random_llava import CONFIG
from random_policy import MEAN, STD, random_policy


def write_model(folder: Path) -> Path:
    """Write a model that `load` reads; returns its folder. Its end token is likely, so that answers end."""
    policy = random_policy()
    head = policy.model.language_model.lm_head
    is_end = mx.arange(head.weight.shape[0])[:, None] == policy.end
    head.weight = mx.where(is_end, 2.5 * head.weight, head.weight)
    folder.mkdir(parents=True)
    weights = dict(tree_flatten(policy.model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    policy.tokenizer.save_pretrained(folder)
    text = CONFIG["text_config"] | {"vocab_size": len(policy.tokenizer)}
    config = CONFIG | {"image_token_index": policy.image_token, "text_config": text}
    (folder / "config.json").write_text(json.dumps(config))
    pixels = {"crop_size": 28, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder


def write_photos(folder: Path, count: int) -> Path:
    """Write `count` images of noise; returns their folder."""
    folder.mkdir(parents=True)
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (28, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder
