"""Any family with random weights: its tiny config, a tokenizer that knows its template's marks, and images."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import random_onevision
import random_policy
from mlx.utils import tree_flatten
from PIL import Image
from random_llava import random_llava

from mlx_visalign.data.images import Preprocessing
from mlx_visalign.inference.policy import Policy
from mlx_visalign.models.families.family import Family

TOKENIZERS = {"vicuna_v1": random_policy.tokenizer, "onevision": random_onevision.tokenizer}
MEAN = STD = (0.5, 0.5, 0.5)


def config_of(family: Family) -> dict[str, Any]:
    """The family's tiny config, for the words of its tokenizer."""
    words = TOKENIZERS[family.template]()
    text = family.tiny["text_config"] | {"vocab_size": len(words)}
    return family.tiny | {"text_config": text, "image_token_index": words.convert_tokens_to_ids("<image>")}


def policy_of(family: Family) -> Policy:
    size = family.tiny["vision_config"]["image_size"]
    preprocessing = Preprocessing(size, MEAN, STD, family.aspects[0])
    model, words = random_llava(config=config_of(family)), TOKENIZERS[family.template]()
    return Policy(model, words, preprocessing, family.template, "random", cache_gb=1.0)


def save_model(policy: Policy, folder: Path) -> Path:
    """A model folder in MLX's layout, with its words and pixels."""
    folder.mkdir()
    policy.tokenizer.save_pretrained(folder)
    size = {"height": policy.preprocessing.size, "width": policy.preprocessing.size}
    pixels = {"crop_size": size, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    (folder / "config.json").write_text(json.dumps(config_of(policy.family)))
    weights = dict(tree_flatten(policy.model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def save_images(folder: Path) -> list[Path]:
    """A square, a wide and a high image."""
    paths = []
    for name, height, width in (("square", 40, 40), ("wide", 30, 90), ("high", 70, 30)):
        paths.append(folder / f"{name}.png")
        levels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(levels).save(paths[-1])
    return paths
