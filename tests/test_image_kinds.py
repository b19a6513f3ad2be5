"""Every kind of image file is read as it looks: upright, in 8 bits, on white, in RGB."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from image_files import experiment as experiment
from image_files import load as load
from layouts import GREY, both, file, folders, image, oriented, saved
from PIL import Image

from raybench.data import pixels
from raybench.data.contents import Encoded

RAMP = Image.fromarray(GREY)
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)
PICTURE = Image.fromarray(COLOUR)


def grey_16(kind: str) -> bytes:
    return saved(Image.fromarray(GREY.astype(np.uint16) * 257), kind)


def transparent(kind: str, mode: str) -> bytes:
    """Black, its right half transparent."""
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, :4] = 255
    layers = np.zeros((8, 8, 4), np.uint8)
    layers[..., 3] = alpha
    return saved(Image.fromarray(layers).convert(mode), kind)


def palette_with_a_transparent_colour(kind: str) -> bytes:
    picture = Image.new("P", (8, 8), 0)
    picture.putpalette([0, 0, 0, 200, 0, 0])
    picture.paste(1, (4, 0, 8, 8))
    return saved(picture, kind, transparency=1)


def frames(kind: str) -> bytes:
    return saved(RAMP, kind, save_all=True, append_images=[Image.new("L", (8, 8), 7)] * 2)


HALF_WHITE = np.zeros((8, 8), np.uint8)
HALF_WHITE[:, 4:] = 255

# The file's content, what is to be seen, and by how much a channel may differ.
KINDS: dict[str, tuple[Callable[[], bytes], np.ndarray, int]] = {
    "png": (lambda: saved(PICTURE, "PNG"), COLOUR, 0),
    "bmp": (lambda: saved(PICTURE, "BMP"), COLOUR, 0),
    "ppm": (lambda: saved(PICTURE, "PPM"), COLOUR, 0),
    "tiff": (lambda: saved(PICTURE, "TIFF"), COLOUR, 0),
    "tga": (lambda: saved(PICTURE, "TGA"), COLOUR, 0),
    "webp": (lambda: saved(PICTURE, "WEBP", lossless=True), COLOUR, 0),
    "jpeg": (lambda: saved(RAMP, "JPEG", quality=100), GREY, 4),
    "gif": (lambda: saved(RAMP, "GIF"), GREY, 0),
    "animated gif": (lambda: frames("GIF"), GREY, 0),
    "tiff of pages": (lambda: frames("TIFF"), GREY, 0),
    "animated webp": (lambda: frames("WEBP"), GREY, 8),
    "grey": (lambda: saved(RAMP, "PNG"), GREY, 0),
    "palette": (lambda: saved(RAMP.convert("P"), "PNG"), GREY, 0),
    "one bit": (lambda: saved(Image.fromarray(HALF_WHITE).convert("1"), "PNG"), HALF_WHITE, 0),
    "16-bit png": (lambda: grey_16("PNG"), GREY, 0),
    "16-bit tiff": (lambda: grey_16("TIFF"), GREY, 0),
    "16-bit pgm": (lambda: b"P5 8 8 65535\n" + (GREY.astype(">u2") * 257).tobytes(), GREY, 0),
    "16-bit tiff of the other order": (
        lambda: saved(Image.frombytes("I;16B", (8, 8), (GREY.astype(">u2") * 257).tobytes()),
                      "TIFF"), GREY, 0,
    ),
    "cmyk": (lambda: saved(PICTURE.convert("CMYK"), "TIFF"), COLOUR, 1),
    "cmyk jpeg": (lambda: saved(RAMP.convert("RGB").convert("CMYK"), "JPEG", quality=100), GREY, 6),
    "transparent": (lambda: transparent("PNG", "RGBA"), HALF_WHITE, 0),
    "transparent grey": (lambda: transparent("PNG", "LA"), HALF_WHITE, 0),
    "transparent palette": (lambda: palette_with_a_transparent_colour("PNG"), HALF_WHITE, 0),
    "transparent gif": (lambda: palette_with_a_transparent_colour("GIF"), HALF_WHITE, 0),
    "upright": (lambda: oriented(1), GREY, 0),
    "upside down": (lambda: oriented(3), GREY, 0),
    "turned right": (lambda: oriented(6), GREY, 0),
    "turned left": (lambda: oriented(8), GREY, 0),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_is_seen_as_it_looks(kind):
    write, wanted, tolerance = KINDS[kind]
    seen, _, side = pixels.decoded(Encoded("x", write()), 8)
    if wanted.ndim == 2:
        wanted = np.repeat(wanted[..., None], 3, axis=-1)
    assert side == 8
    assert np.abs(seen.astype(int) - wanted).max() <= tolerance


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_white_are_refused(mode):
    content = saved(RAMP.convert(mode), "TIFF")
    with pytest.raises(ValueError, match=r"x is not a readable image .*convert it to 8 or 16"):
        pixels.decoded(Encoded("x", content), 8)


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (1, 1), (3, 50)])
def test_thin_images_take_no_more_memory_than_others(shape):
    content = saved(Image.new("L", shape, 99), "PNG")
    seen, _, side = pixels.decoded(Encoded("x", content), 64)
    assert side == min(shape)
    assert (seen == 99).all()


def test_damage_of_every_kind_is_a_value_error_of_one_line():
    """Bytes of the header changed at random: whatever Pillow raises, the file is named."""
    rng = np.random.default_rng(0)
    with pixels.without_warnings():
        for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
            content = saved(PICTURE, kind)
            for _ in range(40):
                altered = bytearray(content)
                for place in rng.integers(4, len(content), 3):
                    altered[place] = rng.integers(256)
                try:
                    seen, *_ = pixels.decoded(Encoded("the file", bytes(altered)), 8)
                    assert seen.shape == (8, 8, 3)
                except ValueError as error:
                    assert "the file is not a readable image" in str(error)  # noqa: PT017
                    assert "\n" not in str(error)  # noqa: PT017


def test_pillow_does_not_warn(load, memory_path, capsys):
    """Of an image of 90 megapixels it does, before raybench refuses it."""
    content = BytesIO()
    Image.new("1", (9500, 9500)).save(content, "PNG")
    both(folders("a", "b"), file("b/x.png", content.getvalue()))(memory_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="9500 x 9500 pixels"):
            load(memory_path)


def test_the_same_image_has_the_same_digest_as_file_and_as_bytes(tmp_path):
    content = image()
    (tmp_path / "x.png").write_bytes(content)
    digests = [pixels.decoded(Encoded("x", c), 8)[1] for c in (content, tmp_path / "x.png")]
    assert digests[0] == digests[1]
