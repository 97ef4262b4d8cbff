"""Models of which only the shapes are there: MLX draws a weight when it is evaluated, and these never are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from PIL import Image
from transformers import AutoTokenizer

from mlx_visalign.data.images import Preprocessing, image_digest
from mlx_visalign.inference.policy import TINY, Policy
from mlx_visalign.models.clip import CLIPConfig, TextConfig, VisionConfig
from mlx_visalign.models.families import build_model

WORDS = {"model_type": "llama", "vocab_size": 32000, "rms_norm_eps": 1e-5}
BLOCKS = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
PIXELS = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "projection_dim": 768}
TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
# LLaVA-1.5-7B, and openai/clip-vit-large-patch14-336, whose tower it sees through.
LLAVA = {"model_type": "llava", "vision_feature_layer": -2, "text_config": WORDS | BLOCKS, "vision_config": PIXELS | TOWER}
CLIP_L14 = CLIPConfig(TextConfig(768, 3072, 12, 12), VisionConfig(1024, 4096, 24, 16, image_size=336, patch_size=14), 768)
GREY = (0.5, 0.5, 0.5)


def make_photos(folder: Path, number: int) -> list[Path]:
    """Images that differ, so that each is seen on its own."""
    paths = [folder / f"{index}.png" for index in range(number)]
    for index, path in enumerate(paths):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
    return paths


def policy_of(config: dict[str, Any], photos: Sequence[Path]) -> Policy:
    """A policy without weights that has the features of these images in its cache. Its words are the tiny model's."""
    words = AutoTokenizer.from_pretrained(TINY)
    model = build_model(config | {"image_token_index": words.convert_tokens_to_ids("<image>")})
    size, width = config["vision_config"]["image_size"], config["vision_config"]["hidden_size"]
    policy = Policy(model, words, Preprocessing(size, GREY, GREY, "pad"), "vicuna_v1", "weightless", cache_gb=1.0)
    for photo in photos:
        policy.cache.put(image_digest(photo), mx.random.normal((policy.image_tokens + 1, width)).astype(mx.float16))
    return policy
