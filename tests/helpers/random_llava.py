"""A LLaVA with random weights, small enough for exact tests: two layers, grouped-query attention, four image tokens."""

from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path

from mlx_visalign.models import families
from mlx_visalign.models.lora import LoRASettings, adapters, attach

CONFIG = families.find("llava").tiny
IMAGE, IMAGE_TOKENS = 3, 4


def random_llava(seed: int = 0, config: dict[str, Any] = CONFIG, **text: Any) -> Any:
    """Weights drawn so that logits are of order 1 and every part matters. `text` changes the text config."""
    model = families.build_model(config | {"text_config": config["text_config"] | text})
    root = mx.random.key(seed)

    def draw(path: str, array: mx.array) -> mx.array:
        key = mx.random.split(root, 2)[0] + sum(map(ord, path))
        noise = mx.random.normal(array.shape, key=key.astype(mx.uint32))
        if "norm" in path and path.endswith("weight"):
            return 1 + 0.1 * noise
        return noise * (0.1 if array.ndim == 1 else 1.2 / max(1, array.shape[-1]) ** 0.5)

    model.update(tree_map_with_path(draw, model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return model


def prompt(before: list[int], after: list[int], images: int = 1) -> list[int]:
    """BOS, words, image tokens, words."""
    return [1, *before, *([IMAGE] * IMAGE_TOKENS * images), *after]


def fill(model, seed):
    for index, layer in enumerate(adapters(model).values()):
        layer.lora_b = 0.3 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(seed + index))


def trained_llava(rounds=1):
    """A random model with `rounds` rounds of rank 4, 5, ... whose B is not zero."""
    model = random_llava()
    for count in range(rounds):
        attach(model, LoRASettings(rank=4 + count, scale=2.0), mx.random.key(count))
        fill(model, 100 * count)
    return model
