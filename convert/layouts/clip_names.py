"""CLIP tensor names: Hugging Face's and OpenAI's.

models/clip.py reads Hugging Face's. OpenAI's: openai/CLIP, clip/model.py; there q, k and v are one matrix, and projections
are multiplied from the right.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlx_visalign.convert.io.assembled import rows
from mlx_visalign.convert.io.source import Source
from mlx_visalign.convert.io.tensors import Entry
from mlx_visalign.convert.layouts.llava_names import BUFFERS
from mlx_visalign.convert.layouts.table import Rule, Shape, Table, Transpose, dropped, same, under
from mlx_visalign.utils.errors import UserError

HEAD = 64  # head dimension of every CLIP that OpenAI published
PARTS = ("text_model.", "vision_model.")
TURNED = Transpose((1, 0))
_BLOCK = [
    *(Rule(f"resblocks.*.ln_{number}.*", f"layers.*.layer_norm{number}.*") for number in (1, 2)),
    *(
        Rule(f"resblocks.*.attn.in_proj_{kind}.{x}", f"layers.*.self_attn.{x}_proj.{kind}")
        for kind in ("weight", "bias")
        for x in "qkv"
    ),
    Rule("resblocks.*.attn.out_proj.*", "layers.*.self_attn.out_proj.*"),
    Rule("resblocks.*.mlp.c_fc.*", "layers.*.mlp.fc1.*"),
    Rule("resblocks.*.mlp.c_proj.*", "layers.*.mlp.fc2.*"),
]
HUGGING_FACE = Table(
    [*BUFFERS, *same("text_model.*", "vision_model.*", "visual_projection.weight", "text_projection.weight", "logit_scale")]
)
OPENAI = Table(
    [
        *(
            dropped(name, "a scalar that follows from the shapes")
            for name in ("input_resolution", "context_length", "vocab_size")
        ),
        Rule("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        Rule("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
        Rule("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        Rule("visual.ln_pre.*", "vision_model.pre_layrnorm.*"),
        *under("visual.transformer.", "vision_model.encoder.", _BLOCK),
        Rule("visual.ln_post.*", "vision_model.post_layernorm.*"),
        Rule("visual.proj", "visual_projection.weight", TURNED),
        Rule("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        Rule("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        *under("transformer.", "text_model.encoder.", _BLOCK),
        Rule("ln_final.*", "text_model.final_layer_norm.*"),
        Rule("text_projection", "text_projection.weight", TURNED),
        *same("logit_scale"),
    ]
)


def is_openai(source: Source) -> bool:
    return "visual.conv1.weight" in source.entries


def split_qkv(source: Source) -> Source:
    """Split OpenAI's fused q, k, v projections.

    attn.in_proj_weight becomes in_proj_weight.q, .k and .v, and in_proj_bias likewise.
    """
    entries: dict[str, Entry] = {}
    for name, entry in source.entries.items():
        parts = _qkv(entry) if re.search(r"\.attn\.in_proj_(weight|bias)$", name) else {name: entry}
        entries |= parts
    return replace(source, entries=entries)


def _qkv(entry: Entry) -> dict[str, Entry]:
    name, shape = entry.tensor.name, entry.tensor.shape
    if not shape or shape[0] % 3:
        raise UserError(f"{entry.path}: {name} has the shape {shape}, expected a first dimension divisible by 3 (q, k, v).")
    third = shape[0] // 3
    return {f"{name}.{x}": rows(entry, i * third, (i + 1) * third, f"{name}.{x}") for i, x in enumerate("qkv")}


def openai_config(source: Source) -> dict[str, Any]:
    """A config.json derived from the tensors' shapes.

    What shapes do not show is as in all of OpenAI's models: quick_gelu, attention heads of 64.
    """
    shapes = OPENAI.through({name: tensor.shape for name, tensor in split_qkv(source).tensors.items()})
    text = {name.removeprefix("text_model."): shape for name, shape in shapes.items() if name.startswith("text_model.")}
    vision = {name.removeprefix("vision_model."): shape for name, shape in shapes.items() if name.startswith("vision_model.")}
    vocab_size, width = _shape(text, "embeddings.token_embedding.weight", 2)
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": _shape(shapes, "text_projection.weight", 2)[0],
        "text_config": {
            "model_type": "clip_text_model",
            **_tower(text, width),
            "vocab_size": vocab_size,
            "max_position_embeddings": _shape(text, "embeddings.position_embedding.weight", 2)[0],
            "bos_token_id": vocab_size - 2,
            "eos_token_id": vocab_size - 1,
        },
        "vision_config": vision_config(vision),
    }


def vision_config(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """A CLIP vision tower's config, derived from its shapes.

    `shapes` has Hugging Face's names, relative to the tower.
    """
    width, _, _, patch = _shape(shapes, "embeddings.patch_embedding.weight", 4)
    positions, _ = _shape(shapes, "embeddings.position_embedding.weight", 2)
    size = {"image_size": patch * math.isqrt(positions - 1), "patch_size": patch}
    return {"model_type": "clip_vision_model", **_tower(shapes, width), **size}


def _tower(shapes: Mapping[str, Shape], width: int) -> dict[str, Any]:
    blocks = {name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}
    return {
        "hidden_size": width,
        "intermediate_size": _shape(shapes, "encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": len(blocks),
        "num_attention_heads": max(1, width // HEAD),
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def _shape(shapes: Mapping[str, Shape], name: str, dimensions: int) -> Shape:
    shape = shapes.get(name, ())
    if len(shape) != dimensions or 0 in shape:
        raise UserError(f"These are not CLIP weights: {name} has the shape {shape}, expected {dimensions} dimensions.")
    return shape
