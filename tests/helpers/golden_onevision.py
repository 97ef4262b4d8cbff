"""transformers' logits of a small LLaVA-OneVision (tests/golden/make_onevision.py), and ours of the same rows and images."""

import make_onevision
import mlx.core as mx
import numpy as np
from random_onevision import IMAGE, MEAN, STD

from mlx_visalign.data.images import Preprocessing
from mlx_visalign.inference.prefix_cache import extend, prefill, right_pad
from mlx_visalign.models import families
from mlx_visalign.models.decoder import Decoder, decoder_of, merge

GOLDEN = np.load(make_onevision.FILE)


def embeddings(model, rows):
    """The rows' word embeddings with their images merged in, and the mask."""
    ids, mask = right_pad(rows)
    pixels = mx.stack([Preprocessing(44, MEAN, STD, "pad")(image) for image in make_onevision.squares()[: len(rows)]])
    features = families.of(model).project(model, families.of(model).features(model, pixels))
    return merge(decoder_of(model).embed(ids), ids, IMAGE, features), mask


def our_logits(model, rows=make_onevision.ROWS) -> list[np.ndarray]:
    """Every position's logits: all rows in one batch, all but the first token read as a continuation of it."""
    embeds, mask = embeddings(model, rows)
    decoder = decoder_of(model)
    prefix = prefill(decoder, embeds[:, :1], mask[:, :1])
    inputs = Decoder(lambda _: embeds[:, 1:], decoder.layers, decoder.norm, decoder.head)
    states, _ = extend(inputs, prefix.branch(1), mx.zeros((len(rows), embeds.shape[1] - 1), mx.int32), mask[:, 1:])
    logits = decoder.head(mx.concatenate([prefix.state[:, None], states], axis=1))
    return [np.array(logits[row, : int(mask[row].sum())]) for row in range(len(mask))]
