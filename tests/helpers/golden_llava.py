"""transformers' logits of a small LLaVA (tests/golden/make_llava.py), and ours of the same rows and images."""

import make_llava
import mlx.core as mx
import numpy as np
from random_llava import IMAGE

from mlx_visalign.inference.prefix_cache import extend, prefill, right_pad
from mlx_visalign.models import families
from mlx_visalign.models.decoder import Decoder, decoder_of, merge
from mlx_visalign.utils.tolerances import PARITY

GOLDEN = np.load(make_llava.FILE)


def our_logits(model) -> list[np.ndarray]:
    """All rows in one batch with all images, through the prefix cache."""
    ids, mask = right_pad(make_llava.ROWS)
    decoder = decoder_of(model)
    features = families.of(model).features(model, mx.array(make_llava.pixels(4)))
    embeds = merge(decoder.embed(ids), ids, IMAGE, families.of(model).project(model, features))
    # Every position's logits: read all but the first token as a continuation of it.
    prefix = prefill(decoder, embeds[:, :1], mask[:, :1])
    inputs = Decoder(lambda _: embeds[:, 1:], decoder.layers, decoder.norm, decoder.head)
    states, _ = extend(inputs, prefix.branch(1), ids[:, 1:], mask[:, 1:])
    logits = decoder.head(mx.concatenate([prefix.state[:, None], states], axis=1))
    return [np.array(logits[row, : int(mask[row].sum())]) for row in range(len(mask))]


def assert_logits(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert 1 < np.abs(theirs).max() < 20
        np.testing.assert_allclose(ours, theirs, atol=PARITY)
