"""Converts an image of any file type to pixels: upright, RGB, square, 8 bits.

file ─ first frame ─ upright by EXIF ─ 8 bits ─ on white where transparent ─ RGB ─ fit ─▶
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from raybench.data.contents import Encoded

LARGEST = 89_478_485
"""Pixels of the largest image to decode; above it Pillow warns of a decompression bomb."""
VALUES = np.arange(256)


def decoded(image: Encoded, size: int) -> tuple[NDArray[np.uint8], int, int]:
    """Pixels (size, size, 3), a 64-bit digest of the source, and the original shorter side.

    The centre is cut out and scaled with Pillow's bicubic filter; for a served model use
    `ImageOps.fit`, which does the same.

    Raises:
        ValueError: it is not an image, damaged, or too large.
    """
    content = image.content.read_bytes() if isinstance(image.content, Path) else image.content
    try:
        if isinstance(content, bytes):
            with Image.open(BytesIO(content)) as opened:
                if opened.width * opened.height > LARGEST:
                    raise Image.DecompressionBombError(
                        f"{opened.width} x {opened.height} pixels, more than {LARGEST:,}"
                    )
                rgb = as_rgb(opened)
        else:
            rgb = Image.fromarray(content).convert("RGB")
            content = content.tobytes()
    # Pillow's readers raise errors of many types for damaged files, including KeyError and
    # struct.error.
    except Exception as error:
        reason = " ".join(str(error).split())
        if isinstance(error, UnidentifiedImageError):  # its text contains an object's address
            reason = "its first bytes match no known type"
        raise ValueError(
            f"--data: {image.where} is not a readable image ({reason}). Replace or remove it"
        ) from error
    return fit(rgb, size), digest(content), min(rgb.size)


def fit(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """(size, size, 3): the largest square at the centre, scaled."""
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


def sums(image: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sums of the pixels (size, size, 3) and of their squares, by channel: (3,) each.

    From Pillow's histogram, which releases the GIL: NumPy's sums took a fifth of the time.
    """
    counts = np.array(Image.fromarray(image).histogram(), np.int64).reshape(3, 256)
    return counts @ VALUES, counts @ VALUES**2


def as_rgb(image: Image.Image) -> Image.Image:
    """The image upright, with 8 bits per channel, and on white where it is transparent.

    Raises:
        ValueError: the value of white is unknown for its pixel format.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a pixel; convert it to 8 or 16")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        return Image.alpha_composite(white, layers).convert("RGB")
    return image.convert("RGB")


def digest(content: bytes) -> int:
    """A 64-bit hash of an image's content, independent of where it is stored."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silences Pillow's warnings about odd EXIF and large images; `decoded` refuses the latter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield
