"""Image decoding and model preprocessing.

Any input (path, bytes, Pillow image, array) is decoded in one place, then preprocessed for its model.

The aspect (pad or crop) is part of the model: LLaVA-1.5 was trained on images padded to a square with CLIP's mean colour
(`pad`), while the Hugging Face processor cuts out the centre (`crop`). The wrong one costs accuracy without any error.
"""

import hashlib
import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, cast

import mlx.core as mx
import numpy as np
from jaxtyping import Float, Shaped
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.lfs_pointers import FIRST_LINES
from mlx_visalign.utils.links import image_inside
from mlx_visalign.utils.schema import build

Aspect = Literal["pad", "crop"]
Picture = str | Path | bytes | Image.Image | Shaped[np.ndarray, "..."] | Shaped[mx.array, "..."]
"""An image as a path, a file's content, a Pillow image, or an array; see `open_image`."""

MAX_PIXELS = 200_000_000
MAX_SIDE = 65_535
LARGE = 6144  # side of the largest square processed; larger images are reduced first
LONG = 16  # maximum aspect ratio of an image cropped to a square; the excess is cut first
BAND = 1_000_000  # pixels converted at once
FORMATS = ["JPEG", "PNG", "WEBP", "GIF"]
HEIC_FIX = 'pip install "mlx-visalign[heic]"'
HEIC_BRANDS = {b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")}
LOOK, DEAD_ZONE = 16, 2  # cells per side, and grey levels


def open_image(picture: Picture) -> Image.Image:
    """Image as upright RGB of at most 37.7 megapixels.

    A file, or its content as bytes, is JPEG, PNG, WebP, GIF or (with the `heic` extra) HEIC, whatever its name; a Pillow image
    may have any mode; an array is [h, w] or [h, w, 1 to 4] (grey, grey and alpha, RGB, RGB and alpha) of uint8, uint16 or
    floats from 0 to 1. The same picture gives the same pixels in every form:

    - It is rotated by its EXIF orientation, which a Pillow image keeps. Damaged EXIF data are ignored.
    - Transparent pixels (alpha channel, palette or one transparent colour) become white.
    - Of 16 bits the upper 8 are used, in grey and in colour. A Pillow image of mode I or F does not state its range, so it is
      the smallest of 0..1 (F only), 0..255 and 0..65,535 that contains its values.
    - Of several frames the first is used; of a Pillow image the current one.
    - Colour profiles are ignored, as in the models' training; CMYK red is (255 - cyan) (255 - black) / 255.
    - Over 37.7 megapixels (6,144 x 6,144) blocks of n x n pixels are averaged, with the smallest sufficient n.

    Raises `UserError` for other formats and modes, damaged files, and images over 200 megapixels or 65,535 pixels on a side
    (decompression bombs), which are not decoded. Memory: at most 4 bytes per pixel of the file, plus 16 MB and the result.
    The result may be the input itself: do not modify it in place.
    """
    with _opened(picture) as image:
        return _shown(image)


def check_image(path: str | Path) -> bytes:
    """Validate an image file; return its `difference_hash`.

    Raises the `UserError` that `open_image` would raise. A JPEG is read completely, but decoded at a reduced size (down to
    an eighth). Results are cached until the file changes.
    """
    try:
        state = Path(path).stat()
    except OSError:
        return _look(path, None)  # raises the UserError
    return _look(path, (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))


@cache
def _look(path: str | Path, state: tuple[int, ...] | None) -> bytes:
    with _opened(path) as image:
        image.draft(None, (4 * LOOK, 4 * LOOK))
        return difference_hash(_shown(image))


def difference_hash(image: Image.Image) -> bytes:
    """Perceptual hash from brightness gradients, 2x2x16x16 bits.

    Whether a 17x17 grey copy gets brighter, and whether darker, to the right and downwards. Differences of at most 2 levels
    count as neither: they are noise or JPEG artefacts.
    """
    grey = np.asarray(image.convert("L").resize((LOOK + 1, LOOK + 1), Image.Resampling.LANCZOS), dtype=np.int16)
    steps = np.stack([grey[:-1, 1:] - grey[:-1, :-1], grey[1:, :-1] - grey[:-1, :-1]])
    return np.packbits([steps > DEAD_ZONE, steps < -DEAD_ZONE]).tobytes()


def image_digest(picture: Picture) -> str:
    """Content hash: of a file's bytes, else of the pixels."""
    if isinstance(picture, str | Path):
        path = Path(picture)
        try:
            picture = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).hexdigest()
    image = open_image(picture)
    return f"pixels {image.width}x{image.height} {hashlib.sha256(image.tobytes()).hexdigest()}"


def image_finder(folder: Path, elsewhere: str | None = None) -> Callable[[str, str], Path]:
    """Resolver of image names in rows: (name, where) -> path.

    It raises `UserError`, beginning with `where`, for an image that lies outside the folder or cannot be decoded.
    `elsewhere` is a folder where it may be instead, for the error message.
    """

    def find(name: str, where: str) -> Path:
        path = image_inside(folder, name, where, elsewhere)
        try:
            check_image(path)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        return path

    return find


@cache
def reads_heic() -> bool:
    """Whether HEIC (iPhone photos) can be read.

    True if the optional pillow-heif is installed, which is then registered with Pillow.
    """
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False)  # a draft would decode only the embedded preview, and prove nothing
    return True


def formats_read() -> str:
    """Text listing the formats that `open_image` reads."""
    return "JPEG, PNG, WebP, GIF or HEIC" if reads_heic() else "JPEG, PNG, WebP or GIF"


@contextmanager
def _opened(picture: Picture) -> Iterator[Image.Image]:
    """Open an image and check its size. Any error, also in the block, becomes a `UserError` that names it."""
    name = _name(picture)
    try:
        with _pillows_limits():
            if isinstance(picture, str | Path | bytes):
                file = io.BytesIO(picture) if isinstance(picture, bytes) else picture
                with Image.open(file, formats=FORMATS + ["HEIF"] * reads_heic()) as opened:
                    _require_harmless(opened, name)
                    yield opened
            else:
                image = picture if isinstance(picture, Image.Image) else _of_array(picture)
                _require_harmless(image, name)
                yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name}: no such image.") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name}: {TOO_LARGE}") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: {_what_it_is_not(picture)}") from None
    except Exception as error:  # decoders may raise anything on untrusted bytes
        why = str(error).strip() or type(error).__name__
        raise UserError(f"{name}: this image cannot be decoded ({why}); repair or remove it.") from None


@contextmanager
def _pillows_limits() -> Iterator[None]:
    """Set Pillow's pixel limit (179 megapixels by default) to ours, and silence its warnings."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS // 2  # Pillow refuses twice this
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


TOO_LARGE = f"more than {MAX_PIXELS // 10**6} megapixels or {MAX_SIDE:,} pixels on a side; shrink it."


def _require_harmless(image: Image.Image, name: str) -> None:
    if 0 in image.size:
        raise UserError(f"{name}: the image is empty ({image.width}x{image.height} pixels); remove it.")
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise UserError(f"{name}: {image.width}x{image.height} pixels is {TOO_LARGE}")


def _name(picture: Picture) -> str:
    if isinstance(picture, str | Path):
        return str(picture)
    if isinstance(picture, bytes):
        return f"the image of {len(picture):,} bytes"
    return str(getattr(picture, "filename", "") or "the given image")


def _what_it_is_not(picture: Picture) -> str:
    start = b""
    if isinstance(picture, bytes):
        start = picture[:64]
    elif isinstance(picture, str | Path):
        with open(picture, "rb") as file:
            start = file.read(64)
    if start.startswith(FIRST_LINES):
        return "this is a Git LFS pointer, not the image itself: run `git lfs pull` in its folder, or download it again."
    if not reads_heic() and start[4:12] in HEIC_BRANDS:
        return f"this is a HEIC photo; run `{HEIC_FIX}` to read it, or export it as JPEG."
    return f"expected a {formats_read()} image; convert or remove this file."


def _of_array(array: Any) -> Image.Image:
    """Pillow image from an array in one of the forms of `open_image`, else UserError."""
    if isinstance(array, mx.array):
        array = np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)
    if not isinstance(array, np.ndarray):
        raise UserError(
            f"Expected an image as a path, the bytes of its file, a Pillow image or an array, got {type(array).__name__}."
        )
    channels = array.shape[2] if array.ndim == 3 else 1
    got = f"{array.dtype} of shape {array.shape}"
    if array.ndim not in (2, 3) or channels not in (1, 2, 3, 4) or array.size == 0:
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        cure = " Put the channels last." if first else " Give one image." if array.ndim == 4 else ""
        raise UserError(f"Expected an array [height, width] or [height, width, 1 to 4 channels], got {got}.{cure}")
    levels = _levels(array, got)
    return Image.fromarray(levels[..., 0] if array.ndim == 3 and channels == 1 else levels)


def _levels(array: Shaped[np.ndarray, "..."], got: str) -> Shaped[np.ndarray, "..."]:
    if array.dtype.kind == "u" and array.itemsize <= 2:
        return (array >> 8 * (array.itemsize - 1)).astype(np.uint8)
    if array.dtype.kind != "f":
        raise UserError(f"Expected an array of uint8, uint16 or floats from 0 to 1, got {got}.")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):  # written so that NaN is refused too
        raise UserError(f"Expected an array of uint8, uint16 or floats from 0 to 1, got {got} from {low:g} to {high:g}.")
    return np.rint(array * 255).astype(np.uint8)


def _shown(image: Image.Image) -> Image.Image:
    """Upright RGB on white, converted in bands to avoid a second copy of a large image."""
    transparent = _transparent(image)  # read before load(), which drops the file's own values
    image.load()
    turn, scale = _orientation(image), _scale(image)
    width, height = image.size
    step = max(1, math.ceil(math.sqrt(width * height) / LARGE))
    if image.mode == "RGB" and turn == 1 and step == 1 and not image.has_transparency_data:
        return image if type(image) is Image.Image else image.convert("RGB")
    shown = Image.new("RGB", (math.ceil(width / step), math.ceil(height / step)))
    rows = step * max(1, BAND // (width * step))
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        if transparent is not None:
            band.info["transparency"] = transparent
        shown.paste(_rgb(band, scale).reduce(step), (0, top // step))
    if turn != 1:
        shown.getexif()[ExifTags.Base.Orientation] = turn
        ImageOps.exif_transpose(shown, in_place=True)
    return shown


def _transparent(image: Image.Image) -> Any:
    """A PNG's transparent colour in 8-bit levels; Pillow keeps the file's 2, 4 or 16 bits."""
    colour, tiles = image.info.get("transparency"), getattr(image, "tile", ())
    form = str(tiles[0].args) if tiles else ""
    if isinstance(colour, int) and form in ("L;2", "L;4"):
        return colour * (85 if form == "L;2" else 17)
    if isinstance(colour, tuple) and form == "RGB;16B":
        return tuple(value >> 8 for value in colour)
    return colour


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data fail in many ways, and the image is fine without them
        return 1


def _scale(image: Image.Image) -> float:
    """Factor that maps an image of mode I or F to levels 0 to 255."""
    if image.mode not in ("I", "F"):
        return 1
    low, high = (float(cast(float, value)) for value in image.getextrema())
    if not 0 <= low <= high <= 65_535:
        raise UserError(f"Expected an image of mode {image.mode} with values from 0 to 65,535, got {low:g} to {high:g}.")
    if image.mode == "F" and high <= 1:
        return 255
    return 1 if high <= 255 else 1 / 256


def _rgb(image: Image.Image, scale: float) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip most of it to white
        levels = np.asarray(image)
        grey = Image.fromarray((levels >> 8).astype(np.uint8))
        if "transparency" in image.info:
            grey.putalpha(Image.fromarray((levels != image.info["transparency"]).astype(np.uint8) * 255))
        image = grey
    elif image.mode in ("I", "F"):
        levels = np.asarray(image) * scale
        image = Image.fromarray((levels if scale < 1 else np.rint(levels)).astype(np.uint8))  # the upper 8 of 16 bits
    elif image.mode == "LAB":
        image = ImageCms.applyTransform(image, _lab_to_rgb()) or image
    elif image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image.convert("RGB")


@cache
def _lab_to_rgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


MAX_LEVEL = 100  # limit for means and standard deviations, which are about 0.5


@dataclass(frozen=True)
class Preprocessing:
    """Image preprocessing of one model.

    size  side length in pixels
    mean, std  per channel, of values in 0..1
    aspect  pad to a square or crop the centre
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    aspect: Aspect

    @classmethod
    def from_config(cls, config: dict[str, Any], aspect: Aspect) -> "Preprocessing":
        """From the content of a Hugging Face `preprocessor_config.json`.

        Or the image part of `processor_config.json`.
        """
        size = config.get("crop_size") or config.get("size")  # SigLIP's processors do not crop; their size is a square
        side = size.get("height") if isinstance(size, dict) else size
        given = {"crop_size": side, "image_mean": config.get("image_mean"), "image_std": config.get("image_std")}
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise UserError(f"preprocessor_config.json lacks {', '.join(missing)}; copy it from the original model.")
        values = {"size": side, "mean": given["image_mean"], "std": given["image_std"], "aspect": aspect}
        found = build(cls, values, "preprocessor_config.json")
        if not (min(found.std) > 0 and max(*found.std, *map(abs, found.mean)) <= MAX_LEVEL and 0 < found.size <= MAX_SIDE):
            raise UserError(
                f"preprocessor_config.json has a size of {found.size}, a mean of {found.mean} and a std of {found.std}, "
                "which no model has; copy it from the original model."
            )
        return found

    @property
    def background(self) -> tuple[int, int, int]:
        """Padding colour, int(255 * mean).

        (122, 116, 104) for CLIP.
        """
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

    def __call__(self, picture: Picture) -> Float[mx.array, "h w 3"]:
        """Open, pad or crop, resize (bicubic) and normalise: (value / 255 - mean) / std.

        To bound memory, an image to be padded is first reduced to at most 6,144 pixels on its longer side, by averaging
        blocks of n x n pixels, and one to be cropped is first cut to 16 times its shorter side. With this and the reduction
        of large images in `open_image` nothing moves by a tenth of the model's pixels: values of a 16,382x3,628 photo
        differ by 0.2 levels of 255 on average, those of 48 and 100 megapixels by 0.12 (padded) or 0.15 (cropped) and
        nowhere by more than 1.
        """
        image = self._within_bounds(open_image(picture))
        pixels = self._processor(images=image, return_tensors="np")["pixel_values"][0]
        return mx.array(np.ascontiguousarray(pixels.transpose(1, 2, 0), dtype=np.float32))

    def _within_bounds(self, image: Image.Image) -> Image.Image:
        shorter, longer = sorted(image.size)
        if self.aspect == "pad":
            return image if longer <= LARGE else image.reduce(math.ceil(longer / LARGE))
        if longer <= LONG * shorter:
            return image
        left, top = ((side - min(side, LONG * shorter)) // 2 for side in image.size)
        return image.crop((left, top, image.width - left, image.height - top))

    def shown(self, pixels: Float[mx.array, "h w 3"]) -> Image.Image:
        """Invert the normalisation: pixels as an image, clipped to 0..255."""
        levels = np.array(pixels) * np.array(self.std) + np.array(self.mean)
        return Image.fromarray((levels.clip(0, 1) * 255).round().astype(np.uint8))
