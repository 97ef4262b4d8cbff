"""Named views of an image, as recipes use them.

Augmentations are applied before padding and CLIP preprocessing; diffusion noise after them, on the normalised pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
from jaxtyping import Float, UInt8

from mlx_visalign.data.augment import color, draws, filters, geometry, policies
from mlx_visalign.data.augment.diffusion import STEPS, diffuse
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.own_code import find_function

Augmentation = Callable[[mx.array, mx.array, int], mx.array]


def _pixels(count: int, size: int) -> int:
    """SeVa's pixel counts, which are for 336-pixel images, scaled to another size."""
    return max(1, round(count * size / 336))


# Called with the image (uint8 [h, w, 3]), a random key and the model's image size in pixels. The order is that of
# SeVa's code (`seva/generate_with_aug_ocr.py` at 97aa157); the last two are ours.
AUGMENTATIONS: dict[str, Augmentation] = {
    "pad": lambda image, key, size: geometry.pad(image, _pixels(50, size)),
    "center-crop": lambda image, key, size: geometry.center_crop(image, _pixels(128, size)),
    "random-crop": lambda image, key, size: draws.random_crop(image, key, _pixels(224, size)),
    "crop": lambda image, key, size: draws.random_resized_crop(image, key, _pixels(224, size), (0.36, 0.64)),
    "flip": lambda image, key, size: draws.maybe(geometry.flip, image, key),
    "perspective": lambda image, key, size: draws.random_perspective(image, key),
    "rotation": lambda image, key, size: draws.random_rotation(image, key),
    "affine": lambda image, key, size: draws.random_affine(image, key),
    "grayscale": lambda image, key, size: color.grayscale(image),
    "color-jitter": lambda image, key, size: draws.color_jitter(image, key),
    "invert": lambda image, key, size: draws.maybe(color.invert, image, key),
    "equalize": lambda image, key, size: draws.maybe(color.equalize, image, key),
    "autocontrast": lambda image, key, size: draws.maybe(color.autocontrast, image, key),
    "posterize": lambda image, key, size: draws.maybe(lambda x: color.posterize(x, 2), image, key),
    "solarize": lambda image, key, size: draws.maybe(lambda x: color.solarize(x, 128), image, key),
    "sharpness": lambda image, key, size: draws.maybe(filters.smooth, image, key),  # torchvision's sharpness factor 0
    "blur": lambda image, key, size: draws.random_blur(image, key),
    "autoaugment": lambda image, key, size: policies.auto_augment(image, key),
    "randaugment": lambda image, key, size: policies.rand_augment(image, key),
    "moco": lambda image, key, size: draws.contrastive_and_blur(image, key, _pixels(224, size), (0.2, 1.0)),
    "byol": lambda image, key, size: draws.contrastive_and_blur(image, key, _pixels(224, size), (0.08, 1.0)),
    "simclr": lambda image, key, size: draws.contrastive(image, key, _pixels(224, size), (0.2, 1.0), hue=0.4),
    "mask": lambda image, key, size: draws.random_mask(image, key),
    "blank": lambda image, key, size: geometry.blank(image),
}


@dataclass(frozen=True)
class View:
    """A view: an augmentation, a diffusion step, or neither.

    The augmentation applies to the image, the diffusion step to the preprocessed pixels.
    """

    label: str
    augmentation: Augmentation | None = None
    step: int | None = None

    def of_image(self, image: UInt8[mx.array, "h w 3"], key: mx.array, size: int) -> UInt8[mx.array, "height width 3"]:
        """Augment the image, before padding and preprocessing.

        `size` is the model's image size in pixels.
        """
        return image if self.augmentation is None else self.augmentation(image, key, size)

    def of_pixels(self, pixels: Float[mx.array, "h w 3"], key: mx.array) -> Float[mx.array, "h w 3"]:
        """Diffuse the pixels, after padding and preprocessing."""
        return pixels if self.step is None else diffuse(pixels, self.step, key)


def parse_view(label: str) -> View:
    """View for a label in a recipe.

    "clean", "diffusion-STEP" with a step of 0..999, a name in `AUGMENTATIONS`, or your own augmentation as
    "FILE.py:FUNCTION" or "MODULE:FUNCTION". Raises `UserError` for anything else.
    """
    if label == "clean":
        return View(label)
    if ":" in label:
        return View(label, augmentation=_checked(find_function(label, "The augmentation"), label))
    if label in AUGMENTATIONS:
        return View(label, augmentation=AUGMENTATIONS[label])
    name, _, step = label.partition("-")
    if name == "diffusion" and step.isdecimal() and int(step) < STEPS:
        return View(label, step=int(step))
    raise UserError(
        f"Unknown view {label!r}. Choose clean, diffusion-STEP with a step from 0 to {STEPS - 1} "
        f"(such as diffusion-500), one of {', '.join(AUGMENTATIONS)}, or your own as FILE.py:FUNCTION."
    )


def _checked(augmentation: Augmentation, label: str) -> Augmentation:
    """A user's own augmentation, which must return an image."""

    def augment(image: mx.array, key: mx.array, size: int) -> mx.array:
        made = augmentation(image, key, size)
        is_image = isinstance(made, mx.array) and made.dtype == mx.uint8 and made.ndim == 3 and made.shape[2] == 3 and made.size
        if not is_image:
            what = type(made).__name__
            if isinstance(made, mx.array):
                what = f"{str(made.dtype).removeprefix('mlx.core.')} {list(made.shape)}"
            raise UserError(f"The augmentation {label!r} should return an MLX array, uint8 [h, w, 3]; it returned {what}.")
        return made

    return augment
