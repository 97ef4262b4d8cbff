"""Deterministic colour operations with Pillow's integer arithmetic.

Sources: ImageEnhance, ImageOps, Convert.c. Images are uint8 [h, w, 3]. A factor of 1 leaves the image unchanged.
"""

import mlx.core as mx
from jaxtyping import Int, UInt8


def luma(image: UInt8[mx.array, "h w 3"]) -> UInt8[mx.array, "h w 1"]:
    """ITU-R 601 grey level.

    L = 0.299 R + 0.587 G + 0.114 B, in 16.16 fixed point as Pillow's `convert("L")`.
    """
    weights = mx.array([19595, 38470, 7471], dtype=mx.int32)
    total = (image.astype(mx.int32) * weights).sum(axis=-1, keepdims=True)
    return ((total + 0x8000) >> 16).astype(mx.uint8)


def grayscale(image: UInt8[mx.array, "h w 3"]) -> UInt8[mx.array, "h w 3"]:
    """Greyscale image with three equal channels.

    SeVa has one channel, which would break the padding of images that are not square.
    """
    return mx.repeat(luma(image), 3, axis=-1)


def blend(base: UInt8[mx.array, "..."], image: UInt8[mx.array, "h w 3"], factor: float) -> UInt8[mx.array, "h w 3"]:
    """base + factor (image - base), as Pillow's `Image.blend`.

    Clipped and rounded down. `base` may broadcast.
    """
    start = base.astype(mx.float32)
    return mx.clip(start + factor * (image.astype(mx.float32) - start), 0, 255).astype(mx.uint8)


def adjust_brightness(image: UInt8[mx.array, "h w 3"], factor: float) -> UInt8[mx.array, "h w 3"]:
    """Factor 0: black, 1: image, above 1: brighter."""
    return blend(mx.array(0, dtype=mx.uint8), image, factor)


def adjust_contrast(image: UInt8[mx.array, "h w 3"], factor: float) -> UInt8[mx.array, "h w 3"]:
    """Factor 0: mean grey, 1: image, above 1: more contrast."""
    grey = luma(image)
    # int64, since the sum exceeds 2^31 above 8.4 million pixels; halves are rounded up.
    mean = (2 * grey.astype(mx.int64).sum() + grey.size) // (2 * grey.size)
    return blend(mean.astype(mx.uint8), image, factor)


def adjust_saturation(image: UInt8[mx.array, "h w 3"], factor: float) -> UInt8[mx.array, "h w 3"]:
    """Factor 0: greyscale, 1: image, above 1: stronger colours."""
    return blend(luma(image), image, factor)


def adjust_hue(image: UInt8[mx.array, "h w 3"], shift: float) -> UInt8[mx.array, "h w 3"]:
    """Shift the hue by a fraction of the colour circle.

    `shift` is in -0.5..0.5; in 8-bit HSV, as torchvision does with a Pillow image. Where a hue is exactly an integer level,
    Pillow's float arithmetic may fall one level below it (0.3 % of random pixels).
    """
    hue, saturation, value = _to_hsv(image)
    return _from_hsv((hue + int(shift * 255)) % 256, saturation, value)


def _to_hsv(image: mx.array) -> tuple[Int[mx.array, "h w"], Int[mx.array, "h w"], Int[mx.array, "h w"]]:
    """Hue, saturation and value in 0..255, rounded down."""
    pixels = image.astype(mx.int32)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    high, low = pixels.max(axis=-1), pixels.min(axis=-1)
    spread = mx.maximum(high - low, 1)  # 0 for grey, which has no saturation and an arbitrary hue
    by_blue = 4 * spread + red - green
    by_green = 2 * spread + blue - red
    sixths = mx.where(red == high, green - blue, mx.where(green == high, by_green, by_blue)) % (6 * spread)
    return 255 * sixths // (6 * spread), 255 * (high - low) // mx.maximum(high, 1), high


def _from_hsv(
    hue: Int[mx.array, "h w"], saturation: Int[mx.array, "h w"], value: Int[mx.array, "h w"]
) -> UInt8[mx.array, "h w 3"]:
    sector = hue * 6 // 255
    along, share = hue * 6 / 255 - sector, saturation / 255
    falling = mx.floor(value * (1 - share * along) + 0.5).astype(mx.int32)
    rising = mx.floor(value * (1 - share * (1 - along)) + 0.5).astype(mx.int32)
    low = mx.floor(value * (1 - share) + 0.5).astype(mx.int32)
    # Red in the six sectors of the circle; green and blue take the same values a third and two thirds later.
    red = mx.stack([value, falling, low, low, rising, value], axis=-1)
    places = (sector[..., None] + mx.array([0, 4, 2])) % 6
    return mx.take_along_axis(red, places, axis=-1).astype(mx.uint8)


def invert(image: UInt8[mx.array, "h w 3"]) -> UInt8[mx.array, "h w 3"]:
    """255 - x."""
    return 255 - image


def posterize(image: UInt8[mx.array, "h w 3"], bits: int) -> UInt8[mx.array, "h w 3"]:
    """Keep the highest `bits` (1..8) of each value."""
    return image & (256 - 2 ** (8 - bits))


def solarize(image: UInt8[mx.array, "h w 3"], threshold: float) -> UInt8[mx.array, "h w 3"]:
    """Invert the values that reach `threshold`."""
    return mx.where(image.astype(mx.float32) < threshold, image, 255 - image)


def autocontrast(image: UInt8[mx.array, "h w 3"]) -> UInt8[mx.array, "h w 3"]:
    """Stretch each channel to the full range 0..255."""
    low, high = image.min(axis=(0, 1)).astype(mx.int32), image.max(axis=(0, 1)).astype(mx.int32)
    stretched = (image.astype(mx.int32) - low) * 255 // mx.maximum(high - low, 1)
    return mx.where(high > low, stretched.astype(mx.uint8), image)


def equalize(image: UInt8[mx.array, "h w 3"]) -> UInt8[mx.array, "h w 3"]:
    """Spread each channel's values evenly over 0..255 (`PIL.ImageOps.equalize`)."""
    counts = _histogram(image)
    brightest = image.max(axis=(0, 1)).astype(mx.int32)[:, None]
    others = counts.sum(axis=1, keepdims=True) - mx.take_along_axis(counts, brightest, axis=1)
    step = others // 255
    below = mx.cumsum(counts, axis=1) - counts
    table = mx.minimum((step // 2 + below) // mx.maximum(step, 1), 255)
    spread = table.reshape(-1)[_channel_levels(image)].astype(mx.uint8)
    return mx.where(step.reshape(3) > 0, spread, image)


def _channel_levels(image: mx.array) -> Int[mx.array, "h w 3"]:
    """Index of each value in a table of 3 x 256 entries."""
    return image.astype(mx.int32) + mx.array([0, 256, 512], dtype=mx.int32)


def _histogram(image: mx.array) -> Int[mx.array, "3 256"]:
    return mx.zeros(768, dtype=mx.int32).at[_channel_levels(image).reshape(-1)].add(1).reshape(3, 256)
