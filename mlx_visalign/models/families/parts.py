"""Language models and vision towers that families consist of.

Each has the defaults of its config section and the names and shapes of its parameters.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

Shape = tuple[int, ...]
Config = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Part:
    """A section of config.json, and the module that it describes.

    model_type  of the section
    defaults    of transformers' config class, 4.31 to 5.23, as far as they affect the model
    only        settings of which mlx-vlm's class computes only this value, whatever a config says
    parameters  mlx-vlm's (name, shape) of every parameter, for a complete section
    """

    model_type: str
    defaults: Config
    only: Config
    parameters: Callable[[Config], Iterator[tuple[str, Shape]]]


def linear(name: str, inputs: int, outputs: int) -> list[tuple[str, Shape]]:
    """The weight of a linear layer, then its bias."""
    return [(f"{name}.weight", (outputs, inputs)), (f"{name}.bias", (outputs,))]


def _norm(name: str, width: int) -> list[tuple[str, Shape]]:
    return [(f"{name}.weight", (width,)), (f"{name}.bias", (width,))]


def _language_model(text: Config, biases: bool) -> Iterator[tuple[str, Shape]]:
    """Llama's parameters. `biases`: queries, keys and values have one."""
    hidden, wide, vocabulary = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
    keys = hidden // text["num_attention_heads"] * text["num_key_value_heads"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    yield "model.norm.weight", (hidden,)
    if not text["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, hidden)
    for layer in range(text["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        yield f"{block}.input_layernorm.weight", (hidden,)
        yield f"{block}.post_attention_layernorm.weight", (hidden,)
        for name, outputs in (("q_proj", hidden), ("k_proj", keys), ("v_proj", keys)):
            yield from linear(f"{block}.self_attn.{name}", hidden, outputs)[: 1 + biases]
        yield f"{block}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{block}.mlp.gate_proj.weight", (wide, hidden)
        yield f"{block}.mlp.up_proj.weight", (wide, hidden)
        yield f"{block}.mlp.down_proj.weight", (hidden, wide)


def _tower(vision: Config, class_token: bool) -> Iterator[tuple[str, Shape]]:
    """CLIP's parameters. SigLIP has no class token, hence no norm before the blocks, and a bias in the patch embedding."""
    wide, patch, channels = vision["hidden_size"], vision["patch_size"], vision["num_channels"]
    patches = (vision["image_size"] // patch) ** 2
    yield "embeddings.patch_embedding.weight", (wide, patch, patch, channels)
    yield "embeddings.position_embedding.weight", (patches + class_token, wide)
    if class_token:
        yield "embeddings.class_embedding", (wide,)
        yield from _norm("pre_layrnorm", wide)
    else:
        yield "embeddings.patch_embedding.bias", (wide,)
    yield from _norm("post_layernorm", wide)
    for layer in range(vision["num_hidden_layers"]):
        block = f"encoder.layers.{layer}"
        yield from _norm(f"{block}.layer_norm1", wide)
        yield from _norm(f"{block}.layer_norm2", wide)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{block}.self_attn.{name}", wide, wide)
        yield from linear(f"{block}.mlp.fc1", wide, vision["intermediate_size"])
        yield from linear(f"{block}.mlp.fc2", vision["intermediate_size"], wide)


LLAMA = Part(
    "llama",
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
    only={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    parameters=partial(_language_model, biases=False),
)
QWEN2 = Part(
    "qwen2",
    defaults={
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
    },
    only={"hidden_act": "silu", "use_sliding_window": False},
    parameters=partial(_language_model, biases=True),
)
CLIP = Part(
    "clip_vision_model",
    defaults={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    only={"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    parameters=partial(_tower, class_token=True),
)
SIGLIP = Part(
    "siglip_vision_model",
    defaults={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "vision_use_head": True,
    },
    only={"hidden_act": "gelu_pytorch_tanh", "vision_use_head": False},
    parameters=partial(_tower, class_token=False),
)
