"""Small data sets in many layouts: each function writes one below a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from image_files import encoded, noise
from PIL import Image

Write = Callable[[Path], object]

COUNTER = iter(range(1, 10**9))


def image() -> bytes:
    """Another one at each call: equal images are held out together."""
    return encoded(noise(1, seed=next(COUNTER))[0])


def folders(*names: str, images: int = 4) -> Write:
    def write(root: Path) -> None:
        for name in names:
            for number in range(images):
                file(f"{name}/{number}.png", image())(root)

    return write


def splits(train: str, *others: str, classes: str = "ab") -> Write:
    """`<split>/<class>`, the splits as named."""
    return folders(*(f"{split}/{c}" for split in (train, *others) for c in classes))


def file(name: str, content: bytes) -> Write:
    def write(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    return write


def empty(name: str) -> Write:
    return lambda root: (root / name).mkdir(parents=True)


def link(name: str, target: str) -> Write:
    return lambda root: (root / name).symlink_to(root / target, target_is_directory=True)


def both(*parts: Write) -> Write:
    def write(root: Path) -> None:
        for part in parts:
            part(root)

    return write


def parquet(
    name: str,
    labels: Any = (0, 1) * 4,
    *,
    cells: list[Any] | pa.Array | None = None,
    columns: tuple[str, str] = ("image", "label"),
    features: dict[str, Any] | None = None,
) -> Write:
    def write(root: Path) -> None:
        images = [{"bytes": image(), "path": None} for _ in labels] if cells is None else cells
        table = pa.table({columns[0]: images, columns[1]: labels})
        if features is not None:
            about = {"huggingface": json.dumps({"info": {"features": features}})}
            table = table.replace_schema_metadata(about)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / name)

    return write


def saved(pixels: Image.Image, kind: str, **options: Any) -> bytes:
    content = BytesIO()
    pixels.save(content, kind, **options)
    return content.getvalue()


GREY = np.tile(np.linspace(0, 255, 8).astype(np.uint8), (8, 1))  # dark left, bright right


def oriented(orientation: int) -> bytes:
    """The grey ramp stored so that EXIF's orientation turns it upright."""
    stored = {1: GREY, 3: GREY[::-1, ::-1], 6: np.rot90(GREY, 1), 8: np.rot90(GREY, -1)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.ascontiguousarray(stored[orientation])).convert("RGB")
    return saved(picture, "PNG", exif=exif)


def huge(width: int, height: int) -> bytes:
    """A PNG whose header tells of so many pixels."""
    content = bytearray(saved(Image.new("L", (1, 1)), "PNG"))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)
