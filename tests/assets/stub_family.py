"""Panorama: LLaVA's tower looks at a wide image in two halves. A family in a file of its own, for the tests.

An image takes n * n places, a wide one twice as many, and the first token of a prompt stands at position 5.
"""

from dataclasses import dataclass, replace

import mlx.core as mx

from mlx_visalign.data.images import open_image
from mlx_visalign.models.decoder import Positions
from mlx_visalign.models.families import llava

START = 5


def halves(height, width):
    return 2 if width >= 1.5 * height else 1


def by_token(attention, x, positions):
    """Rotary positions by their formula where they are given for each token [b, l]."""
    if isinstance(positions, int) or positions.ndim == 1:
        return attention.rope(x, offset=positions)
    size = x.shape[-1] // 2
    angles = positions[:, None, :, None] * attention.rope.base ** (-mx.arange(size) / size)
    one, other = mx.split(x, 2, axis=-1)
    turned = [one * mx.cos(angles) - other * mx.sin(angles), other * mx.cos(angles) + one * mx.sin(angles)]
    return mx.concatenate(turned, axis=-1).astype(x.dtype)


@dataclass(frozen=True, eq=False)
class Panorama(llava.Llava):
    def image_tokens(self, model):
        return 2 * super().image_tokens(model)

    def image_tokens_of(self, model, height, width):
        return super().image_tokens(model) * halves(height, width)

    def pixels(self, preprocessing, picture):
        image = open_image(picture)
        (width, height), count = image.size, halves(image.height, image.width)
        parts = [image.crop((width * i // count, 0, width * (i + 1) // count, height)) for i in range(count)]
        return mx.concatenate([preprocessing(part) for part in parts], axis=1)

    def states(self, model, pixels):
        parts = mx.split(pixels, pixels.shape[2] // pixels.shape[1], axis=2)
        return mx.stack([super(Panorama, self).states(model, part) for part in parts], axis=1)

    def project(self, model, features):
        return super().project(model, features.flatten(1, 2))

    def decoder(self, model):
        return replace(super().decoder(model), rotate=by_token)

    def positions(self, model, ids, mask, features):
        tokens = mx.broadcast_to(START + mx.arange(ids.shape[1]), ids.shape)
        return Positions(tokens, START + mask.sum(axis=1))


OURS = {"model_type": "panorama", "title": "Panorama", "varies": True, "tiny": llava.FAMILY.tiny | {"model_type": "panorama"}}
FAMILY = Panorama(**vars(llava.FAMILY) | OURS)
