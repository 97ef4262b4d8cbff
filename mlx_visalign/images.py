"""From a file to the pixels a model sees: safe decoding, then the model's own preprocessing.

The aspect is part of the model: LLaVA-1.5 was trained on images padded to a square with CLIP's mean colour (`pad`),
while the Hugging Face processor cuts out the centre (`crop`). The wrong one costs accuracy without any error.
"""

import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError

from mlx_visalign.errors import UserError
from mlx_visalign.fields import build
from mlx_visalign.links import image_inside

Aspect = Literal["pad", "crop"]
MAX_PIXELS = 64_000_000
MAX_SIDE = 16_000  # padding makes a square of the longer side
FORMATS = ["JPEG", "PNG", "WEBP"]
HEIC_FIX = 'pip install "mlx-visalign[heic]"'
HEIC_BRANDS = {b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")}


def open_image(path: str | Path) -> Image.Image:
    """Decode a JPEG, PNG, WebP or (with the `heic` extra) HEIC file to an upright RGB image; of several, the main one.

    Refuses other formats, damaged files and images over 64 megapixels (a decompression bomb) with a `UserError`.
    Pillow warns only above 89 megapixels, so the size is checked before any pixel is decoded.
    """
    with _opened(path) as image:
        return _rgb(_upright(image))


def check_image(path: str | Path) -> None:
    """Raise the `UserError` that `open_image` would raise. A JPEG is read to its end, but computed at an eighth of its size."""
    with _opened(path) as image:
        image.draft(None, (1, 1))
        _rgb(_upright(image))


def image_finder(folder: Path, elsewhere: str | None = None) -> Callable[[str, str], Path]:
    """What finds the image that a row of data names, and looks at it once: (name, where) -> its path.

    Raises `UserError`, beginning with `where`, for one that lies outside of the folder or cannot be decoded. `elsewhere` is
    where it may be, for the error to say.
    """
    look = cache(check_image)

    def find(name: str, where: str) -> Path:
        path = image_inside(folder, name, where, elsewhere)
        try:
            look(path)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        return path

    return find


@cache
def reads_heic() -> bool:
    """Whether HEIC, what iPhones make, can be read: the optional pillow-heif is installed. Pillow then knows the format."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False)  # a draft would be the preview that the file brings, and prove nothing
    return True


def formats_read() -> str:
    """What `open_image` reads, in words."""
    return "JPEG, PNG, WebP or HEIC" if reads_heic() else "JPEG, PNG or WebP"


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """A file whose header is read and harmless. Whatever goes wrong from here on is a `UserError` that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS + ["HEIF"] * reads_heic()) as image:
                if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
                    raise UserError(
                        f"{path}: {image.width}x{image.height} pixels is more than 64 megapixels or 16,000 pixels on a "
                        "side; shrink it."
                    )
                yield image
    except FileNotFoundError:
        raise UserError(f"{path}: no such image.") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path}: more than 64 megapixels; shrink it.") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: {_what_it_is_not(path)}") from None
    except (OSError, EOFError, RuntimeError, SyntaxError, ValueError) as error:  # some of them are libheif's
        raise UserError(f"{path}: this image cannot be decoded ({str(error).strip()}); repair or remove it.") from None


def _what_it_is_not(path: str | Path) -> str:
    if not reads_heic() and Path(path).read_bytes()[4:12] in HEIC_BRANDS:
        return f"this is a HEIC photo, whatever its name; {HEIC_FIX} to read it, or export it as JPEG."
    return f"expected a {formats_read()} image; convert or remove this file."


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data say. Damaged EXIF data say nothing, and the image is as good without them."""
    try:
        return ImageOps.exif_transpose(image)
    except (struct.error, AttributeError, KeyError, TypeError, ValueError):
        return image


def _rgb(image: Image.Image) -> Image.Image:
    """Grey of 16 bits loses its lower 8, as colour of 16 bits does when it is decoded; Pillow would make most of it white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


@dataclass(frozen=True)
class Preprocessing:
    """How one model wants its pixels: side length, mean and standard deviation per channel (of values in 0..1), aspect."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    aspect: Aspect

    @classmethod
    def from_config(cls, config: dict[str, Any], aspect: Aspect) -> "Preprocessing":
        """From a Hugging Face `preprocessor_config.json` (or the image part of `processor_config.json`)."""
        size = config.get("crop_size") or config.get("size")  # SigLIP's processors crop nothing, their size is a square
        side = size.get("height") if isinstance(size, dict) else size
        given = {"crop_size": side, "image_mean": config.get("image_mean"), "image_std": config.get("image_std")}
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise UserError(f"preprocessor_config.json does not say {', '.join(missing)}; copy it from the original model.")
        values = {"size": side, "mean": given["image_mean"], "std": given["image_std"], "aspect": aspect}
        return build(cls, values, "preprocessor_config.json")

    @property
    def background(self) -> tuple[int, int, int]:
        """The colour of the padding, int(255 * mean): (122, 116, 104) for CLIP."""
        red, green, blue = (int(255 * value) for value in self.mean)
        return red, green, blue

    @cached_property
    def _processor(self) -> Any:
        # The Pillow one by its own name: it needs neither torch nor torchvision, and mlx-vlm, once imported, replaces
        # what transformers' AutoProcessor returns.
        from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

        return LlavaImageProcessorPil(
            do_pad=self.aspect == "pad",
            size={"shortest_edge": self.size},
            crop_size={"height": self.size, "width": self.size},
            image_mean=list(self.mean),
            image_std=list(self.std),
        )

    def __call__(self, image: Image.Image) -> Float[mx.array, "h w 3"]:
        """Pad or crop, resize (bicubic) and normalise: (value / 255 - mean) / std."""
        pixels = self._processor(images=image, return_tensors="np")["pixel_values"][0]
        return mx.array(np.ascontiguousarray(pixels.transpose(1, 2, 0), dtype=np.float32))

    def shown(self, pixels: Float[mx.array, "h w 3"]) -> Image.Image:
        """The way back, to look at: what the tower was given, clipped to what a screen can show."""
        levels = np.array(pixels) * np.array(self.std) + np.array(self.mean)
        return Image.fromarray((levels.clip(0, 1) * 255).round().astype(np.uint8))
