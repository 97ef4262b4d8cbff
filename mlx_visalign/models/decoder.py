"""Parts of a language model, and images merged into prompts."""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import mlx.core as mx
import numpy as np
from jaxtyping import Float, Integer

from mlx_visalign.models.decoder_block import Rotate, by_offset
from mlx_visalign.utils.errors import UserError

Images = Float[mx.array, "n s e"] | list[Float[mx.array, "_ e"]]
"""The embeddings of n images; a list if their lengths differ."""


@dataclass(frozen=True)
class Decoder:
    """The parts of a language model.

    Embedding, blocks (see `decoder_block`), final norm, head, and the rotation by positions.
    """

    embed: Any
    layers: list[Any]
    norm: Any
    head: Any
    rotate: Rotate = by_offset


@dataclass(frozen=True)
class Positions:
    """Positions of b prompts, if not 0, 1, 2, ...

    tokens     of each token: [b, p], or [3, b, p] if positions have three axes, as in m-RoPE
    following  of the first token after each prompt. A continuation counts up from there by one, on all axes
    """

    tokens: Integer[mx.array, "*axes b p"]
    following: Integer[np.ndarray, " b"]


def decoder_of(model: Any) -> Decoder:
    """The parts of a model's language model.

    With tied embeddings, the head is the embedding.
    """
    language = model.language_model
    head = language.model.embed_tokens.as_linear if language.config.tie_word_embeddings else language.lm_head
    return Decoder(language.model.embed_tokens, language.model.layers, language.model.norm, head)


def fitted(prompts: list[list[int]], image_token: int, images: Images) -> list[list[int]]:
    """Prompts with image token blocks resized to their images.

    Blocks and images are matched in reading order. A prompt may have several images: the clean one, a crop, a blank. Raises
    `UserError` unless there are as many blocks as images.
    """
    made: list[list[int]] = []
    found = 0
    for prompt in prompts:
        made.append([])
        for is_image, block in groupby(prompt, lambda token: token == image_token):
            if is_image and found < len(images):
                made[-1] += [image_token] * len(images[found])
            else:
                made[-1] += block
            found += is_image
    if found != len(images):
        raise UserError(f"{found} blocks of image tokens for {len(images)} images.")
    return made


def merge(
    embeds: Float[mx.array, "b l e"], ids: Integer[mx.array, "b l"], image_token: int, images: Images
) -> Float[mx.array, "b l e"]:
    """Replace image tokens' embeddings with image features.

    Features are placed in reading order over rows. Raises `UserError` unless there are exactly as many image tokens.
    """
    here = ids == image_token
    flat = mx.concatenate(images) if isinstance(images, list) else images.reshape(-1, images.shape[-1])
    if (count := int(here.sum())) != len(flat):
        lengths = " or ".join(map(str, sorted({len(image) for image in images})))
        raise UserError(f"{count} image tokens for {len(images)} images of {lengths} features each.")
    index = mx.maximum(mx.cumsum(here.flatten().astype(mx.int32)) - 1, 0).reshape(ids.shape)
    return mx.where(here[..., None], flat.astype(embeds.dtype)[index], embeds)


def plain_logits(model: Any, ids: Integer[mx.array, "b l"], embeds: Float[mx.array, "b l e"]) -> Float[mx.array, "b l v"]:
    """Logits of the language model's own causal forward pass.

    The reference for the prefix cache: complete rows, nothing cached.
    """
    return model.language_model(ids, inputs_embeds=embeds, mask=None).logits
