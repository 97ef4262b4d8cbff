"""The names of LLaVA's tensors in every Hugging Face layout, and the names and shapes that our own layout has.

Ours is mlx-vlm's: language_model.model... and vision_tower.vision_model..., convolutions channels-last. The others differ
in two ways, in all combinations: the language model may be nested in `model.` (what transformers >= 5 has in memory), and
the tower may lack its inner `vision_model.` (transformers >= 5.6). LLaVA-OneVision has the same names.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from mlx_visalign.convert.table import CHANNELS_LAST, Rule, Shape, Table, dropped, same, under

TOWER = "vision_tower.vision_model."
TOWER_RULES = [
    *same("embeddings.class_embedding", "embeddings.position_embedding.weight", "embeddings.patch_embedding.bias"),
    Rule("embeddings.patch_embedding.weight", "embeddings.patch_embedding.weight", CHANNELS_LAST),
    *same("pre_layrnorm.*", "post_layernorm.*", "encoder.layers.*"),  # pre_layrnorm is Hugging Face's spelling
]
BUFFERS = [
    dropped("*.rotary_emb.inv_freq", "a buffer, computed from rope_theta"),
    dropped("*.position_ids", "a buffer: 0, 1, 2, ..."),
]
CLASSIC = same("language_model.model.*", "language_model.lm_head.weight")
NESTED = [
    Rule("model.language_model.*", "language_model.model.*"),
    Rule("lm_head.weight", "language_model.lm_head.weight"),
]


def _layout(language: list[Rule], outer: str, tower: str) -> Table:
    others = under(outer, "", same("multi_modal_projector.*", "image_newline"))
    return Table([*BUFFERS, *language, *others, *under(outer + tower, TOWER, TOWER_RULES)])


LAYOUTS = {
    "classic": _layout(CLASSIC, "", "vision_tower.vision_model."),
    "classic-flat": _layout(CLASSIC, "", "vision_tower."),
    "nested": _layout(NESTED, "model.", "vision_tower.vision_model."),
    "nested-flat": _layout(NESTED, "model.", "vision_tower."),
}


def find_layout(names: Iterable[str]) -> str:
    """The layout that knows most of the names."""
    known = list(names)
    return max(LAYOUTS, key=lambda layout: LAYOUTS[layout].matches(known))


def parameters(config: dict[str, Any]) -> dict[str, Shape]:
    """Every parameter of the model that a complete config.json describes, by its name in our layout."""
    text, vision = config["text_config"], config["vision_config"]
    wide, hidden = vision["hidden_size"], text["hidden_size"]
    shapes = {f"language_model.{name}": shape for name, shape in _language(text)}
    shapes |= {TOWER + name: shape for name, shape in _tower(vision)}
    shapes |= {f"multi_modal_projector.{name}": shape for name, shape in _linear("linear_1", wide, hidden)}
    shapes |= {f"multi_modal_projector.{name}": shape for name, shape in _linear("linear_2", hidden, hidden)}
    if config["model_type"] == "llava_onevision":
        shapes["image_newline"] = (hidden,)
    return shapes


def _language(text: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
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
            weight, bias = _linear(f"{block}.self_attn.{name}", hidden, outputs)
            yield weight
            if text["model_type"] == "qwen2":
                yield bias
        yield f"{block}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{block}.mlp.gate_proj.weight", (wide, hidden)
        yield f"{block}.mlp.up_proj.weight", (wide, hidden)
        yield f"{block}.mlp.down_proj.weight", (hidden, wide)


def _tower(vision: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    wide, patch, channels = vision["hidden_size"], vision["patch_size"], vision["num_channels"]
    patches = (vision["image_size"] // patch) ** 2
    yield "embeddings.patch_embedding.weight", (wide, patch, patch, channels)
    if vision["model_type"] == "siglip_vision_model":
        yield "embeddings.patch_embedding.bias", (wide,)
        yield "embeddings.position_embedding.weight", (patches, wide)
    else:
        yield "embeddings.class_embedding", (wide,)
        yield "embeddings.position_embedding.weight", (patches + 1, wide)
        yield from _norm("pre_layrnorm", wide)
    yield from _norm("post_layernorm", wide)
    for layer in range(vision["num_hidden_layers"]):
        block = f"encoder.layers.{layer}"
        yield from _norm(f"{block}.layer_norm1", wide)
        yield from _norm(f"{block}.layer_norm2", wide)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{block}.self_attn.{name}", wide, wide)
        yield from _linear(f"{block}.mlp.fc1", wide, vision["intermediate_size"])
        yield from _linear(f"{block}.mlp.fc2", vision["intermediate_size"], wide)


def _linear(name: str, inputs: int, outputs: int) -> list[tuple[str, Shape]]:
    return [(f"{name}.weight", (outputs, inputs)), (f"{name}.bias", (outputs,))]


def _norm(name: str, width: int) -> list[tuple[str, Shape]]:
    return [(f"{name}.weight", (width,)), (f"{name}.bias", (width,))]
