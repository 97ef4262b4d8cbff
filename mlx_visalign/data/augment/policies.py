"""AutoAugment and RandAugment as in torchvision 0.15.

arXiv 1805.09501 (ImageNet policy) and arXiv 1909.13719. Both apply operations whose strength is a share 0..1 of the
operation's range, negative for the other direction.
"""

import mlx.core as mx
from jaxtyping import UInt8

from mlx_visalign.data.augment import color, filters, geometry
from mlx_visalign.data.augment.draws import chance, integer
from mlx_visalign.data.augment.geometry import Affine

SIGNED = {"shear-x", "shear-y", "translate-x", "translate-y", "rotate", "brightness", "color", "contrast", "sharpness"}
LARGEST_SHIFT = 150 / 331  # of the image; the paper's 150 pixels at its image size
RAND_AUGMENT_STRENGTH = 9 / 30  # magnitude 9 of bins 0..30

OPERATIONS = {
    "identity": lambda image, strength: image,
    "shear-x": lambda image, strength: geometry.warp_affine(image, Affine(1, 0.3 * strength, 0, 0, 1, 0)),
    "shear-y": lambda image, strength: geometry.warp_affine(image, Affine(1, 0, 0, 0.3 * strength, 1, 0)),
    "translate-x": lambda image, strength: geometry.warp_affine(
        image, Affine(1, 0, -int(LARGEST_SHIFT * strength * image.shape[1]), 0, 1, 0)
    ),
    "translate-y": lambda image, strength: geometry.warp_affine(
        image, Affine(1, 0, 0, 0, 1, -int(LARGEST_SHIFT * strength * image.shape[0]))
    ),
    "rotate": lambda image, strength: geometry.rotate(image, 30 * strength),
    "brightness": lambda image, strength: color.adjust_brightness(image, 1 + 0.9 * strength),
    "color": lambda image, strength: color.adjust_saturation(image, 1 + 0.9 * strength),
    "contrast": lambda image, strength: color.adjust_contrast(image, 1 + 0.9 * strength),
    "sharpness": lambda image, strength: filters.adjust_sharpness(image, 1 + 0.9 * strength),
    "posterize": lambda image, strength: color.posterize(image, 8 - round(4 * strength)),
    "solarize": lambda image, strength: color.solarize(image, 255 * (1 - strength)),
    "autocontrast": lambda image, strength: color.autocontrast(image),
    "equalize": lambda image, strength: color.equalize(image),
    "invert": lambda image, strength: color.invert(image),
}
RAND_AUGMENT = [name for name in OPERATIONS if name != "invert"]

# (operation, probability, magnitude 0..9); autocontrast, equalize and invert ignore the magnitude.
IMAGENET_POLICY = [
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear-x", 0.6, 5), ("equalize", 1.0, 0)),
    (("color", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
]


def auto_augment(image: UInt8[mx.array, "h w 3"], key: mx.array) -> UInt8[mx.array, "h w 3"]:
    """A random one of the 25 ImageNet sub-policies.

    Each consists of two operations, each applied with its own probability.
    """
    policy_key, first_key, second_key = mx.random.split(key, 3)
    sub_policy = IMAGENET_POLICY[integer(policy_key, 0, len(IMAGENET_POLICY))]
    for (name, probability, magnitude), operation_key in zip(sub_policy, (first_key, second_key), strict=True):
        gate_key, sign_key = mx.random.split(operation_key)
        if chance(gate_key, probability):
            image = _apply(name, image, magnitude / 9, sign_key)
    return image


def rand_augment(image: UInt8[mx.array, "h w 3"], key: mx.array) -> UInt8[mx.array, "h w 3"]:
    """Two random operations at magnitude 9 of 30.

    Drawn with replacement from fourteen.
    """
    for operation_key in mx.random.split(key, 2):
        name_key, sign_key = mx.random.split(operation_key)
        name = RAND_AUGMENT[integer(name_key, 0, len(RAND_AUGMENT))]
        image = _apply(name, image, RAND_AUGMENT_STRENGTH, sign_key)
    return image


def _apply(name: str, image: mx.array, strength: float, key: mx.array) -> mx.array:
    """The named operation, in a random direction if it has two."""
    if name in SIGNED and chance(key, 0.5):
        strength = -strength
    return OPERATIONS[name](image, strength)
