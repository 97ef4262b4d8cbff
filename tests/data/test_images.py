"""Decoding and preprocessing: safe, upright, and pixel for pixel what transformers and the original code make of it."""

import sys

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_visalign.data.images import Preprocessing, check_image, open_image, reads_heic
from mlx_visalign.utils.errors import UserError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = [(640, 480), (333, 500), (100, 100)]


def photo(size):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def preprocessing(aspect, size=336):
    return Preprocessing(size, MEAN, STD, aspect)


@pytest.mark.parametrize("size", SIZES)
def test_crop_equals_clips_processor(size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    theirs = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    expected = theirs(images=photo(size), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(preprocessing("crop")(photo(size)), expected, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_pad_equals_the_original_code(size):
    """Paste on a square of int(255 * mean), then resize (haotian-liu/LLaVA, mm_utils.py, expand2square)."""
    image, side = photo(size), max(size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    levels = np.asarray(square.resize((336, 336), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    np.testing.assert_allclose(preprocessing("pad")(image), (levels - MEAN) / STD, atol=1e-5)


def test_padding_lies_where_the_spec_says():
    """SeVa spec, section 10: 640x480 goes to (0, 80) on 640x640, 333x500 to (83, 0); the border's normalised values."""
    border = np.array([-0.011254, -0.011196, -0.001333])
    wide = np.array(preprocessing("pad", 640)(photo((640, 480))))
    np.testing.assert_allclose(wide[[0, 79, 560, 639], 5], np.tile(border, (4, 1)), atol=2e-6)
    assert np.abs(wide[80, :100] - border).max() > 0.01 and np.abs(wide[559, :100] - border).max() > 0.01
    tall = np.array(preprocessing("pad", 500)(photo((333, 500))))
    np.testing.assert_allclose(tall[5, [0, 82, 416, 499]], np.tile(border, (4, 1)), atol=2e-6)
    assert np.abs(tall[:100, 83] - border).max() > 0.01 and np.abs(tall[:100, 415] - border).max() > 0.01


def test_range_of_normalised_pixels():
    black, white = (preprocessing("pad", 8)(Image.new("RGB", (8, 8), (v, v, v))) for v in (0, 255))
    np.testing.assert_allclose(black[0, 0], [-1.7923, -1.7521, -1.4802], atol=1e-4)
    np.testing.assert_allclose(white[0, 0], [1.9303, 2.0749, 2.1459], atol=1e-4)
    assert black.dtype == mx.float32 and black.shape == (8, 8, 3)


def test_from_config_reads_both_spellings_of_the_size():
    config = {"image_mean": MEAN, "image_std": STD}
    for crop_size in (48, {"height": 48, "width": 48}):
        found = Preprocessing.from_config({**config, "crop_size": crop_size}, "pad")
        assert (found.size, found.background) == (48, (122, 116, 104))


def test_from_config_reads_siglips_size_where_nothing_is_cropped():
    config = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 384, "width": 384}}
    for extra in ({}, {"crop_size": None}):
        found = Preprocessing.from_config(config | extra, "pad")
        assert (found.size, found.background) == (384, (127, 127, 127))


def test_an_incomplete_config_is_named():
    for size in ({}, {"size": {"shortest_edge": 336}}):
        with pytest.raises(UserError, match="crop_size, image_std"):
            Preprocessing.from_config({"image_mean": MEAN} | size, "pad")


def test_grey_of_16_bits_keeps_its_shades(tmp_path):
    levels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.png"))[..., 1], levels // 257)


def test_ink_colours_become_screen_colours(tmp_path):
    Image.new("RGB", (8, 8), (200, 30, 40)).convert("CMYK").save(tmp_path / "a.jpg")
    assert np.abs(np.array(open_image(tmp_path / "a.jpg").getpixel((3, 3))) - (200, 30, 40)).max() <= 3


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "MPO"), ("a.webp", "WEBP"), ("a.png", "PNG"), ("a.heic", "HEIF")])
def test_of_several_images_in_a_file_the_first_is_read(tmp_path, name, kind):
    """As iPhones (MPO: a photo and its depth; HEIC: a burst) and the web (moving pictures) have them."""
    assert reads_heic()
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    red.save(tmp_path / name, format=kind, save_all=True, append_images=[blue])
    red_part, _, blue_part = open_image(tmp_path / name).getpixel((30, 30))
    assert red_part > 240 and blue_part < 15


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA", "1", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = Image.new("I;16", (6, 5)) if mode == "I;16" else photo((6, 5)).convert(mode)
    image.save(tmp_path / "a.png")
    assert (open_image(tmp_path / "a.png").mode, open_image(tmp_path / "a.png").size) == ("RGB", (6, 5))


def test_a_photo_taken_sideways_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    photo((60, 40)).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (40, 60)


def test_a_heic_photo_taken_sideways_is_turned_once(tmp_path):
    """The file says it twice, in its own way and in EXIF data, as an iPhone's does."""
    assert reads_heic()
    exif = Image.Exif()
    exif[0x0112] = 6
    left_red = Image.new("RGB", (96, 64), "blue")
    left_red.paste("red", (0, 0, 48, 64))
    for name in ("a.heic", "a.jpg"):
        left_red.save(tmp_path / name, exif=exif.tobytes(), quality=95)
        image = open_image(tmp_path / name)
        assert image.size == (64, 96)
        assert image.getpixel((30, 5))[0] > 240 and image.getpixel((30, 90))[2] > 240  # the left is at the top


def test_a_heic_file_is_no_bomb_and_does_not_lie_about_its_size(tmp_path):
    assert reads_heic()
    photo((64, 64)).save(tmp_path / "whole.heic")
    content = (tmp_path / "whole.heic").read_bytes()
    size = content.index(b"ispe") + 8  # two numbers of four bytes
    for side, said in ((15000, "more than 200 megapixels"), (20, "cannot be decoded")):
        file = tmp_path / f"{side}.heic"
        file.write_bytes(content[:size] + 2 * side.to_bytes(4, "big") + content[size + 8 :])
        with pytest.raises(UserError, match=f"{file.name}.*{said}"):
            open_image(file)


def test_without_its_library_a_heic_photo_is_named_with_the_cure(tmp_path, monkeypatch):
    assert reads_heic()
    photo((60, 40)).save(tmp_path / "a.heic")
    (tmp_path / "a.heic").rename(tmp_path / "a.jpg")  # as some programs leave them
    assert open_image(tmp_path / "a.jpg").size == (60, 40)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    reads_heic.cache_clear()
    with pytest.raises(UserError, match=r'a.jpg: this is a HEIC photo.*pip install "mlx-visalign\[heic\]"'):
        open_image(tmp_path / "a.jpg")
    reads_heic.cache_clear()


@pytest.mark.parametrize("look", [open_image, check_image])
def test_what_is_no_image_is_named(tmp_path, look):
    whole = tmp_path / "whole.jpg"
    photo((64, 64)).save(whole)
    photo((64, 64)).save(tmp_path / "a.bmp")
    assert reads_heic()
    photo((64, 64)).save(tmp_path / "whole.heic")
    cases = {
        "missing.jpg": None,
        "empty.jpg": b"",
        "text.jpg": b"hello",
        "page.png": b"<html></html>",
        "half.heic": (tmp_path / "whole.heic").read_bytes()[:-100],
        "half.jpg": whole.read_bytes()[: whole.stat().st_size // 2],
        "header.jpg": whole.read_bytes()[:20],
        "bmp.jpg": (tmp_path / "a.bmp").read_bytes(),
    }
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            look(tmp_path / name)
    look(whole)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    for name, side in (("big", 14_200), ("huge", 40_000)):
        Image.new("1", (side, side)).save(tmp_path / f"{name}.png")
        with pytest.raises(UserError, match=f"{name}.png.*200 megapixels"):
            open_image(tmp_path / f"{name}.png")
