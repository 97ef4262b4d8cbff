"""`--verify logits`: does the converted model say what transformers says of the source, on a fixed image and prompt?

Both compute in float32, one after the other: each takes 4 bytes a parameter.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from jaxtyping import Float

from mlx_visalign.convert.source import Source
from mlx_visalign.convert.tensors import cast
from mlx_visalign.models import families
from mlx_visalign.models.decoder import decoder_of, merge, plain_logits
from mlx_visalign.models.loading import load_model
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.tolerances import SAME_SHARE

WORDS = 8  # before and after the image


def compare_logits(source: Source, config: dict[str, Any], folder: Path, lossless: bool) -> str:
    """The largest difference of any logit, for the summary. `config` is the source's, every default spelled out.

    Raises `UserError` if nothing was lost by casts or quantisation and the logits differ all the same.
    """
    if find_spec("torch") is None:
        return "not compared with transformers (torch is not installed)"
    ids, pixels = example(config)
    ours = mlx_logits(folder, ids, pixels)
    theirs = transformers_logits(source, config, ids, pixels)
    largest, scale = np.abs(ours - theirs).max(), np.abs(theirs).max()
    agreed = int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    found = f"differ from transformers' by {largest:.1e} at most (the largest is {scale:.1f})"
    if lossless and not largest <= SAME_SHARE * scale:
        raise UserError(f"{folder}: the logits {found}, although nothing was lost. Please report this, with the config.json.")
    return f"{found}, the likeliest next token is the same at {agreed} of {len(ours)} positions"


def example(config: dict[str, Any]) -> tuple[list[int], np.ndarray]:
    """Token ids, spread over the vocabulary, around an image of random normalised pixels [1, h, w, 3]."""
    size, image = config["vision_config"]["image_size"], config["image_token_index"]
    pixels = np.random.default_rng(0).standard_normal((1, size, size, 3)).astype(np.float32)
    words = np.linspace(0, config["text_config"]["vocab_size"] - 1, 2 * WORDS).astype(int).tolist()
    words = [word if word != image else word - 1 for word in words]
    model = families.build_model(config)  # lazy: no weight is drawn
    return [*words[:WORDS], *[image] * families.of(model).image_tokens(model), *words[WORDS:]], pixels


def mlx_logits(folder: Path, ids: list[int], pixels: np.ndarray) -> Float[np.ndarray, "l v"]:
    model = load_model(folder, read_json(folder / "config.json"))
    model.set_dtype(mx.float32)
    tokens = mx.array([ids])
    family = families.of(model)
    features = family.project(model, family.features(model, mx.array(pixels)))
    embeds = merge(decoder_of(model).embed(tokens), tokens, model.config.image_token_index, features)
    return np.array(plain_logits(model, tokens, embeds)[0])


def transformers_logits(source: Source, config: dict[str, Any], ids: list[int], pixels: np.ndarray) -> Float[np.ndarray, "l v"]:
    """transformers' own model with the source's tensors, which our reader reads: no pickle of the source is ever opened."""
    import torch
    import transformers

    family = families.find(config["model_type"])
    peer = getattr(transformers, family.peer)
    tensors = {name: torch.tensor(cast(source.read(name), source.tensors[name].dtype, "F32")[0]) for name in source.tensors}
    described = transformers.AutoConfig.for_model(**config)
    model = peer.from_pretrained(None, config=described, state_dict=tensors, dtype=torch.float32)
    inputs = {name: torch.tensor(array) for name, array in family.peer_inputs(pixels).items()}
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), **inputs).logits[0].numpy()
