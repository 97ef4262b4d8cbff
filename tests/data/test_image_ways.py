"""One picture, whatever way it comes in: every kind of image, by path, bytes, Pillow and array, shows what a viewer shows."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_visalign.data import images
from mlx_visalign.data.images import MAX_PIXELS, Preprocessing, check_image, image_digest, open_image
from mlx_visalign.inference.policy import load
from mlx_visalign.inference.sampling import Sampling
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.scenes import split
from mlx_visalign.utils.errors import UserError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RNG = np.random.default_rng(12)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
ALPHA = np.resize(np.array([0, 255, 128, 3, 200], dtype=np.uint8), (5, 7))
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
PALETTE = RNG.integers(0, 256, (8, 3), dtype=np.uint8)
PLACES = np.resize(np.arange(8, dtype=np.uint8), (5, 7))
TURNS = {  # what undoes each orientation of the EXIF standard
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def grey(levels):
    return np.repeat(levels[..., None], 3, axis=-1)


def on_white(colour, alpha):
    """colour * alpha + white * (1 - alpha), in whole levels."""
    share = alpha[..., None] / 255
    return np.rint(colour * share + 255 * (1 - share)).astype(np.uint8)


def saved(image, kind="PNG", **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def png(depth, colours, rows, transparent=b"", palette=b""):
    """A PNG as other programs write it: of any depth, and with a transparent colour."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    bits = [
        np.unpackbits(np.asarray(row, dtype=f">u{max(depth // 8, 1)}").view(np.uint8)).reshape(-1, max(depth, 8))
        for row in rows
    ]
    raw = b"".join(b"\0" + np.packbits(row[:, -depth:].ravel()).tobytes() for row in bits)
    head = struct.pack(">IIBBBBB", np.asarray(rows[0]).size // (3 if colours == 2 else 1), len(rows), depth, colours, 0, 0, 0)
    middle = [(b"PLTE", palette)] * bool(palette) + [(b"tRNS", transparent)] * bool(transparent)
    chunks = [(b"IHDR", head), *middle, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def palette_image():
    image = Image.fromarray(PLACES, "L")
    image = Image.frombytes("P", (7, 5), image.tobytes())
    image.putpalette(PALETTE.tobytes())
    return image


def moving(first, kind, **how):
    return saved(first, kind, save_all=True, append_images=[Image.new("RGBA", first.size, "blue")], **how)


@cache
def kinds():
    """By name: a file's content, and what a viewer shows of it."""
    rgba, la = np.dstack([COLOUR, ALPHA]), np.dstack([GREY, ALPHA])
    some, one = np.array([0, 128, 255], dtype=np.uint8), PALETTE[PLACES]
    alphas = np.concatenate([some, np.full(5, 255, dtype=np.uint8)])
    two_bits = (GREY % 4).astype(np.uint8)
    exact = DEEP.copy()
    exact[0, :2] = 0x1234, 0x1235
    deep_rows = RNG.integers(0, 65536, (5, 21), dtype=np.uint16)
    deep_rows[2, 3:6] = 1000, 2000, 3000
    deep_shown = (deep_rows >> 8).astype(np.uint8).reshape(5, 7, 3).copy()
    deep_shown[2, 1] = 255
    clear = PALETTE.copy()
    clear[4] = 255
    found = {
        "RGB": (saved(Image.fromarray(COLOUR)), COLOUR),
        "grey": (saved(Image.fromarray(GREY)), grey(GREY)),
        "one bit": (saved(Image.fromarray(GREY > 99)), grey((GREY > 99).astype(np.uint8) * 255)),
        "RGB and alpha": (saved(Image.fromarray(rgba)), on_white(COLOUR, ALPHA)),
        "grey and alpha": (saved(Image.fromarray(la)), on_white(grey(GREY), ALPHA)),
        "palette": (saved(palette_image()), one),
        "palette with shares": (saved(palette_image(), transparency=some.tobytes()), on_white(one, alphas[PLACES])),
        "palette with one clear colour": (saved(palette_image(), transparency=4), clear[PLACES]),
        "grey with a clear level": (
            png(8, 0, GREY, struct.pack(">H", GREY[1, 1])),
            grey(np.where(GREY[1, 1] == GREY, 255, GREY).astype(np.uint8)),
        ),
        "grey of two bits with a clear level": (
            png(2, 0, two_bits, struct.pack(">H", 1)),
            grey(np.where(two_bits == 1, 255, two_bits * 85).astype(np.uint8)),
        ),
        "RGB with a clear colour": (
            png(8, 2, COLOUR.reshape(5, 21), struct.pack(">3H", *COLOUR[1, 1])),
            np.where((COLOUR[1, 1] == COLOUR).all(-1, keepdims=True), 255, COLOUR).astype(np.uint8),
        ),
        "16 bits": (saved(Image.fromarray(DEEP)), grey((DEEP >> 8).astype(np.uint8))),
        "16 bits with a clear level": (
            png(16, 0, exact, struct.pack(">H", 0x1234)),
            grey(np.where(exact == 0x1234, 255, exact >> 8).astype(np.uint8)),
        ),
        "RGB of 16 bits with a clear colour": (png(16, 2, deep_rows, struct.pack(">3H", 1000, 2000, 3000)), deep_shown),
        "moving WebP": (moving(Image.fromarray(rgba), "WEBP", lossless=True, exact=True), on_white(COLOUR, ALPHA)),
        "moving PNG": (moving(Image.fromarray(rgba), "PNG"), on_white(COLOUR, ALPHA)),
        "moving GIF": (moving(palette_image(), "GIF", transparency=4), clear[PLACES]),
    }
    for turn, undo in TURNS.items():
        exif = Image.Exif()
        exif[0x0112] = turn
        found[f"turned {turn}"] = (saved(Image.fromarray(COLOUR), exif=exif), undo(COLOUR))
        found[f"clear and turned {turn}"] = (saved(Image.fromarray(rgba), exif=exif), undo(on_white(COLOUR, ALPHA)))
    return found


KINDS = list(kinds())


def loaded(content):
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_what_a_viewer_shows_by_every_way(tmp_path, kind):
    content, shown = kinds()[kind]
    file = tmp_path / "photo.jpg"  # whatever its name
    file.write_bytes(content)
    lazy = Image.open(file)
    ways = {
        "path": file,
        "text": str(file),
        "bytes": content,
        "Pillow": lazy,
        "Pillow again": lazy,
        "copy": Image.open(file).copy(),
    }
    if kind != "grey of two bits with a clear level" and "16 bits with a clear colour" not in kind:
        ways["loaded"] = loaded(content)  # of these two Pillow forgets in which depth their clear colour is told
    else:
        del ways["copy"], ways["Pillow again"]
    for way, picture in ways.items():
        image = open_image(picture)
        assert image.mode == "RGB", way
        assert np.abs(np.asarray(image).astype(int) - shown).max() <= ("share" in kind or "lpha" in kind or "clear" in kind), (
            way
        )
        np.testing.assert_array_equal(np.asarray(image), np.asarray(open_image(file)), way)
    assert len(check_image(file)) == 128


@pytest.mark.parametrize(
    ("array", "shown"),
    [
        (GREY, grey(GREY)),
        (GREY[..., None], grey(GREY)),
        (COLOUR, COLOUR),
        (np.dstack([GREY, ALPHA]), on_white(grey(GREY), ALPHA)),
        (np.dstack([COLOUR, ALPHA]), on_white(COLOUR, ALPHA)),
        (DEEP, grey((DEEP >> 8).astype(np.uint8))),
        (DEEP.astype(">u2"), grey((DEEP >> 8).astype(np.uint8))),
        (COLOUR.astype(np.uint16) * 257, COLOUR),
        (COLOUR.astype(np.float32) / 255, COLOUR),
        (COLOUR[:, ::-1].astype(np.float64) / 255, COLOUR[:, ::-1]),
        (COLOUR[::2, ::2], COLOUR[::2, ::2]),
    ],
)
def test_an_array_is_read_as_the_image_it_is(array, shown):
    np.testing.assert_array_equal(np.asarray(open_image(array)), shown)
    if array.dtype.isnative and array.dtype != np.float64:
        np.testing.assert_array_equal(np.asarray(open_image(mx.array(array))), shown)


def test_bfloat16_is_read_too():
    shown = np.asarray(open_image(mx.array(COLOUR / 255).astype(mx.bfloat16))).astype(int)
    assert np.abs(shown - COLOUR).max() <= 1


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (COLOUR.transpose(2, 0, 1), r"got uint8 of shape \(3, 5, 7\)\. Put the channels last"),
        (COLOUR[None], r"shape \(1, 5, 7, 3\)\. Give one image"),
        (GREY[0], r"shape \(7,\)"),
        (COLOUR[:0], r"shape \(0, 7, 3\)"),
        (np.dstack([COLOUR, COLOUR]), r"shape \(5, 7, 6\)"),
        (COLOUR.astype(np.int64), "floats from 0 to 1, got int64"),
        (GREY > 9, "got bool"),
        (COLOUR.astype(np.float32), "got float32 .* from 0 to 25"),
        (COLOUR / 255 - 0.5, r"got float64 .* from -0.\d+ to 0.\d+"),
        (np.full((3, 3), np.nan), "from nan to nan"),
    ],
)
def test_another_array_is_refused_with_what_was_expected_and_what_came(array, said):
    with pytest.raises(UserError, match=f"Expected an array .*{said}"):
        open_image(array)


def test_what_is_no_image_is_refused_in_one_sentence():
    """In a process of its own, where no type is checked beforehand."""
    code = (
        "from mlx_visalign.data.images import open_image\n"
        "from mlx_visalign.utils.errors import UserError\n"
        "for wrong in (None, 5, [[1]], {}):\n"
        "    try: open_image(wrong)\n"
        "    except UserError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    names = ("NoneType", "int", "list", "dict")
    assert said == [
        f"Expected an image as a path, the bytes of its file, a Pillow image or an array, got {name}." for name in names
    ]


def pillow_modes():
    """Modes that a program may hand over and no file of ours has, and what they show."""
    colour, levels = Image.fromarray(COLOUR), Image.fromarray(GREY)
    rgba, la = Image.fromarray(np.dstack([COLOUR, ALPHA])), Image.fromarray(np.dstack([GREY, ALPHA]))
    ramp = Image.fromarray(np.arange(0, 65536, 1024, dtype=np.int32).reshape(8, 8))
    ink = RNG.integers(0, 256, (5, 7, 4))
    printed = np.rint((255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255)
    pa = palette_image().convert("PA")
    pa.putalpha(Image.fromarray(ALPHA))
    yield pytest.param(rgba.convert("RGBa"), on_white(COLOUR, ALPHA), 1, id="RGBa")
    yield pytest.param(la.convert("La"), on_white(grey(GREY), ALPHA), 1, id="La")
    yield pytest.param(pa, on_white(PALETTE[PLACES], ALPHA), 1, id="PA")
    yield pytest.param(colour.convert("RGBX"), COLOUR, 0, id="RGBX")
    yield pytest.param(colour.convert("YCbCr"), COLOUR, 3, id="YCbCr")
    yield pytest.param(colour.convert("HSV"), COLOUR, 6, id="HSV")
    yield pytest.param(Image.fromarray(ink.astype(np.uint8), "CMYK"), printed, 1, id="CMYK")
    # L* of the middle grey 119: 116 f(Y) - 16 with Y = ((119 / 255 + 0.055) / 1.055)^2.4 is 50.03
    yield pytest.param(Image.new("LAB", (4, 4), (round(50.03 * 2.55), 128, 128)), np.full((4, 4, 3), 119), 1, id="LAB")
    yield pytest.param(Image.fromarray(DEEP), grey(DEEP >> 8), 0, id="I;16")
    yield pytest.param(Image.fromarray(DEEP.astype(">u2")), grey(DEEP >> 8), 0, id="I;16B")
    yield pytest.param(ramp, grey(np.asarray(ramp) >> 8), 0, id="I of 16 bits")
    yield pytest.param(levels.convert("I"), grey(GREY), 0, id="I of 8 bits")
    yield pytest.param(levels.convert("F"), grey(GREY), 0, id="F of 8 bits")
    yield pytest.param(Image.fromarray(GREY.astype(np.float32) / 255), grey(GREY), 0, id="F up to 1")
    yield pytest.param(Image.fromarray(np.float32([[0, 65535], [256, 32768]])), grey(np.array([[0, 255], [1, 128]])), 1, id="F")


@pytest.mark.parametrize(("image", "shown", "apart"), list(pillow_modes()))
def test_every_mode_of_pillow_is_shown(image, shown, apart):
    got = open_image(image)
    assert got.mode == "RGB" and np.abs(np.asarray(got).astype(int) - shown).max() <= apart
    assert image.mode != "RGB"  # what is given stays as it is


@pytest.mark.parametrize("values", [[[-1.0, 5.0]], [[0.0, 70_000.0]], [[np.nan, 0.5]]])
def test_values_that_no_image_has_are_named(values):
    with pytest.raises(UserError, match="mode F with values from 0 to 65,535, got"):
        open_image(Image.fromarray(np.float32(values)))


def test_what_is_opened_is_opened_once():
    image = Image.fromarray(COLOUR)
    assert open_image(image) is image
    turned = open_image(kinds()["turned 6"][0])
    assert open_image(turned) is turned


def test_a_closed_or_empty_pillow_image_is_named(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "closed.png")
    with Image.open(tmp_path / "closed.png") as image:
        pass
    with pytest.raises(UserError, match=r"closed\.png: this image cannot be decoded"):
        open_image(image)
    with pytest.raises(UserError, match=r"the given image: the image is empty \(0x5 pixels\)"):
        open_image(Image.new("RGB", (0, 5)))


def changed(content, name, data):
    """A PNG with other data in one chunk."""
    start = content.index(name)
    checked = name + data
    return content[:start] + checked + struct.pack(">I", zlib.crc32(checked)) + content[start + len(checked) + 4 :]


def oddities():
    """Files that Pillow warns of, or has more in than it expects."""
    photo = Image.fromarray(np.tile(COLOUR, (8, 8, 1)))
    jpeg = saved(photo, "JPEG")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description that is long enough to lie behind the entries"
    whole = exif.tobytes()
    yield "a palette's shares", kinds()["palette with shares"][0]
    yield "a hundred megapixels", saved(Image.new("1", (10_000, 10_000)))
    yield "EXIF that is cut off", saved(photo, "JPEG", exif=whole[:-30])
    yield "EXIF of another kind", saved(photo, "JPEG", exif=b"Exif\0\0" + bytes(range(64)))
    yield "EXIF with a far entry", saved(photo, "JPEG", exif=whole.replace(struct.pack("<I", 60), struct.pack("<I", 1 << 30)))
    yield "a list of images that is none", jpeg[:2] + b"\xff\xe2\0\x10MPF\0MM\0*\0\0\0\x08" + jpeg[2:]
    moves = kinds()["moving PNG"][0]
    yield "an animation of no frames", changed(moves, b"acTL", bytes(8))
    yield "a second animation", moves[:33] + moves[33:53] + moves[33:]


@pytest.mark.parametrize(("name", "content"), list(oddities()), ids=lambda one: one if isinstance(one, str) else "")
def test_pillows_warnings_stay_with_pillow(tmp_path, name, content):
    (tmp_path / "a.png").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for picture in (tmp_path / "a.png", content):
            assert open_image(picture).mode == "RGB"
        check_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "HEIF"])
def test_damage_is_one_sentence_or_harmless(kind):
    """Bytes changed, cut and doubled: an image comes out, or a UserError; nothing else, and no warning."""
    assert images.reads_heic()
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(np.tile(COLOUR, (4, 4, 1)))
    whole, rng = saved(photo, kind, **({} if kind == "GIF" else {"exif": exif.tobytes()})), np.random.default_rng(3)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(150):
            content = bytearray(whole)
            for place in rng.integers(0, len(whole), rng.integers(1, 6)).tolist():
                content[place] = int(rng.integers(0, 256))
            cut = int(rng.integers(len(whole) // 2, len(whole) + 1))
            try:
                open_image(bytes(content[:cut]))
            except UserError as error:
                refused += 1
                assert str(error).startswith("the image of ")
    assert 10 < refused <= 150


# -- large images ---------------------------------------------------------------------------------------------------------


def detailed(size):
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("aspect", ["pad", "crop"])
@pytest.mark.parametrize("size", [(2000, 1280), (1280, 2000), (2999, 665), (1990, 1990)])
def test_reducing_first_changes_next_to_nothing(monkeypatch, aspect, size):
    """In small: squares over 768 pixels a side instead of 6,144, for a model of 42 pixels instead of 336."""
    see, photo = Preprocessing(42, MEAN, STD, aspect), detailed(size)
    whole = np.array(see(photo))
    monkeypatch.setattr(images, "LARGE", 768)
    reduced = open_image(photo)
    assert reduced.width * reduced.height <= 768**2 and min(reduced.size) >= 200
    levels = np.abs(np.array(see(photo)) - whole) * STD * 255
    assert 0 < levels.max() <= 12 and levels.mean() <= 1  # eight times smaller, it is shifted eight times as far


@pytest.mark.parametrize("kind", ["RGB and alpha", "palette with shares", "turned 6", "clear and turned 7", "16 bits"])
def test_a_large_image_is_the_mean_of_what_is_shown(tmp_path, monkeypatch, kind):
    """By every way, and across the bands it is converted in."""
    content, shown = kinds()[kind]
    monkeypatch.setattr(images, "LARGE", 3)
    monkeypatch.setattr(images, "BAND", 7)
    file = tmp_path / "a.png"
    file.write_bytes(content)
    ways = [np.asarray(open_image(picture)) for picture in (file, content, Image.open(file), loaded(content))]
    assert all((way == ways[0]).all() for way in ways)
    inside = shown[:4, :6] if shown.shape[0] == 5 else shown[:6, 1:]  # whole blocks of two: a turned photo begins at its right
    blocks = inside.reshape(inside.shape[0] // 2, 2, -1, 2, 3).mean(axis=(1, 3))
    got = ways[0][:2, :3] if shown.shape[0] == 5 else ways[0][:3, 1:]
    if kind.startswith("clear"):
        return
    assert np.abs(got.astype(int) - blocks).max() <= 1


def test_an_image_without_end_costs_nothing_much():
    for aspect in ("pad", "crop"):
        for size in ((65_535, 1), (1, 65_535), (30_000, 40)):
            assert Preprocessing(28, MEAN, STD, aspect)(Image.new("L", size, 90)).shape == (28, 28, 3)


@pytest.mark.parametrize(("width", "height"), [(20_000, 10_001), (65_536, 1), (1, 70_000), (60_000, 60_000)])
def test_a_bomb_is_refused_by_every_way_before_it_is_decoded(tmp_path, width, height):
    said = "more than 200 megapixels or 65,535 pixels on a side; shrink it"
    content = changed(png(1, 0, np.zeros((1, 8), np.uint8)), b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(content)
    for picture in (tmp_path / "a.png", content):
        with pytest.raises(UserError, match=said):
            open_image(picture)
    with pytest.raises(UserError, match=said):
        check_image(tmp_path / "a.png")
    if width * height <= 65_536:
        with pytest.raises(UserError, match=said):
            open_image(Image.new("L", (width, height)))
    assert MAX_PIXELS == 200_000_000 and Image.MAX_IMAGE_PIXELS == 89_478_485  # Pillow's own is as it was


PEAK = """
import resource, sys
from mlx_visalign.data.images import Preprocessing, check_image, open_image
from PIL import Image
unit = 1 if sys.platform == "darwin" else 1024
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
see = Preprocessing(336, (0.5,) * 3, (0.5,) * 3, "pad")
see(Image.new("RGB", (60, 40)))
before = peak()
for job, name in ((check_image, "panorama.jpg"), (check_image, "large.jpg"), (see, "panorama.jpg"), (open_image, "large.jpg"),
                  (open_image, "large.png")):
    job(name)
    print(peak() - before)
"""
MAKE = """
from PIL import Image
Image.new("RGB", (16_382, 3628), (9, 99, 199)).save("panorama.jpg")
large = Image.new("RGB", (11_648, 8736), (9, 99, 199))
large.save("large.jpg")
large.save("large.png", compress_level=1)
"""


def test_the_memory_that_large_photos_take_is_bounded(tmp_path):
    """Looking at a JPEG takes next to nothing, else it is 4 bytes a pixel of the file and of the result, and 16 MB."""
    for code in (MAKE, PEAK):
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    look_wide, look, wide, jpeg, other = map(float, told.stdout.split())
    assert max(look_wide, look) < 60
    assert wide < 4 * 59.4 + 60 + 16 + 20
    assert max(jpeg, other) < 4 * 101.8 + 102 + 16 + 20


# -- the model's answers --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy():
    return load("tiny")


def test_the_same_picture_has_the_same_features_and_others_have_others(tmp_path, policy):
    """Those of a file by its bytes, wherever they are; of what is no file by its pixels."""
    content, shown = kinds()["clear and turned 6"]
    (tmp_path / "a.png").write_bytes(content)
    ways = [tmp_path / "a.png", str(tmp_path / "a.png"), content, Image.open(tmp_path / "a.png"), shown]
    states = [policy.image_states(picture) for picture in ways]
    assert all(mx.array_equal(state, states[0]) for state in states[:4])
    assert len({image_digest(picture) for picture in ways[:3]}) == 1
    names = {
        image_digest(COLOUR),
        image_digest(COLOUR[:, ::-1]),
        image_digest(COLOUR.reshape(7, 5, 3)),
        *map(image_digest, ways),
    }
    assert len(names) == 3 + len({image_digest(picture) for picture in ways})


def test_the_answer_does_not_depend_on_the_way_in(tmp_path, policy):
    """A logo on a transparent ground is one on white; a photo that lies on its side stands up, opened or not."""
    scene = draw(next(iter(split("validation", 1))))
    clear = np.dstack([scene, np.where(scene.max(-1) > 90, 255, 0).astype(np.uint8)])
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(clear).save(tmp_path / "logo.png", exif=exif)
    upright = np.rot90(on_white(clear[..., :3], clear[..., 3])).copy()
    expected = policy.answer(upright, "Describe the image.", Sampling(24))
    file = tmp_path / "logo.png"
    for picture in (file, str(file), file.read_bytes(), Image.open(file), mx.array(upright)):
        assert policy.answer(picture, "Describe the image.", Sampling(24)) == expected
    assert policy.answer(clear[..., :3], "Describe the image.", Sampling(24)) != expected
