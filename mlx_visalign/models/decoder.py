"""A language model as the prefix cache reads it, and images in the place of their tokens."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from jaxtyping import Float, Integer

from mlx_visalign.utils.errors import UserError


@dataclass(frozen=True)
class Decoder:
    """A language model in its parts: embedding, blocks (see `decoder_block`), final norm and head."""

    embed: Any
    layers: list[Any]
    norm: Any
    head: Any


def decoder_of(model: Any) -> Decoder:
    """The language model's parts. The head is the embedding itself where the two are tied."""
    language = model.language_model
    head = language.model.embed_tokens.as_linear if language.config.tie_word_embeddings else language.lm_head
    return Decoder(language.model.embed_tokens, language.model.layers, language.model.norm, head)


def merge(
    embeds: Float[mx.array, "b l e"], ids: Integer[mx.array, "b l"], image_token: int, images: Float[mx.array, "n t e"]
) -> Float[mx.array, "b l e"]:
    """Put the features of all images, in reading order over rows, where the image tokens stand.

    Raises `UserError` unless there are exactly n * t image tokens.
    """
    here = ids == image_token
    count, features = int(here.sum()), images.shape[0] * images.shape[1]
    if count != features:
        raise UserError(f"{count} image tokens for {images.shape[0]} images of {images.shape[1]} features each.")
    index = mx.maximum(mx.cumsum(here.flatten().astype(mx.int32)) - 1, 0).reshape(ids.shape)
    flat = images.reshape(-1, images.shape[-1]).astype(embeds.dtype)
    return mx.where(here[..., None], flat[index], embeds)


def plain_logits(model: Any, ids: Integer[mx.array, "b l"], embeds: Float[mx.array, "b l e"]) -> Float[mx.array, "b l v"]:
    """The language model's own forward pass, causal, over whole rows: what the fold is compared with."""
    return model.language_model(ids, inputs_embeds=embeds, mask=None).logits
