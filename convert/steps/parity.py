"""`--verify logits`: compares the converted model's logits with transformers'.

On a fixed image and prompt. Both models run in float32, one after the other; each takes 4 bytes per parameter.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from jaxtyping import Float

from mlx_visalign.convert.io.source import Source
from mlx_visalign.convert.io.tensors import cast
from mlx_visalign.models import families
from mlx_visalign.models.decoder import decoder_of, merge, plain_logits
from mlx_visalign.models.loading import load_model
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json
from mlx_visalign.utils.tolerances import SAME_SHARE

TEXT_TOKENS = 8  # before and after the image


def compare_logits(source: Source, config: dict[str, Any], folder: Path, lossless: bool) -> str:
    """Compare the logits; returns a line for the summary.

    `config` is the source's, with every default filled in. Raises `UserError` if the logits differ although the conversion
    was `lossless`.
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
        raise UserError(
            f"{folder}: the logits {found}, although the conversion was lossless. Please report this, with the config.json."
        )
    return f"{found}; the most likely next token agrees at {agreed} of {len(ours)} positions"


def example(config: dict[str, Any]) -> tuple[list[int], np.ndarray]:
    """Token ids and pixels of a fixed test input.

    The ids are spread over the vocabulary, around an image of random normalised pixels [1, h, w, 3].
    """
    size, image = config["vision_config"]["image_size"], config["image_token_index"]
    pixels = np.random.default_rng(0).standard_normal((1, size, size, 3)).astype(np.float32)
    text = np.linspace(0, config["text_config"]["vocab_size"] - 1, 2 * TEXT_TOKENS).astype(int).tolist()
    text = [token if token != image else token - 1 for token in text]
    model = families.build_model(config)  # lazy: no weight is allocated
    return [*text[:TEXT_TOKENS], *[image] * families.of(model).image_tokens(model), *text[TEXT_TOKENS:]], pixels


def mlx_logits(folder: Path, ids: list[int], pixels: np.ndarray) -> Float[np.ndarray, "l v"]:
    model = load_model(folder, read_json(folder / "config.json"))
    model.set_dtype(mx.float32)
    tokens = mx.array([ids])
    family = families.of(model)
    features = family.project(model, family.features(model, mx.array(pixels)))
    embeds = merge(decoder_of(model).embed(tokens), tokens, model.config.image_token_index, features)
    return np.array(plain_logits(model, tokens, embeds)[0])


def transformers_logits(source: Source, config: dict[str, Any], ids: list[int], pixels: np.ndarray) -> Float[np.ndarray, "l v"]:
    """Logits of transformers' model with the source's tensors.

    Our reader loads the tensors, so no pickle of the source is executed.
    """
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
