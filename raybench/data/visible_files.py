"""The files of a folder without those of the operating system, and which of them are images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

IMAGES = frozenset([
    ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
])  # fmt: skip
UNREADABLE = frozenset([
    ".arrow", ".arw", ".avi", ".cr2", ".cr3", ".dcm", ".dng", ".exr", ".hdr", ".heic", ".heif",
    ".mkv", ".mov", ".mp4", ".nef", ".nii", ".npy", ".orf", ".psd", ".raw", ".svg",
])  # fmt: skip
"""Images, or files of many images, that Pillow does not read. Skipping them would silently lose
data."""
LEFT_BEHIND = frozenset(["thumbs.db", "desktop.ini", "@eadir", "lost+found", "$recycle.bin"])


def visible(folder: Path) -> list[Path]:
    """All files below, sorted; links are followed, hidden names and leftovers are not."""
    return sorted(_walk(folder, [os.path.realpath(folder)]))


def _walk(folder: Path, above: list[str]) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in above:  # a link to a folder above would never end
                    yield from _walk(folder / entry.name, [*above, real])
            elif entry.is_file():
                yield folder / entry.name


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__")) or name.lower() in LEFT_BEHIND


def images_of(folder: Path, files: Iterable[Path]) -> tuple[list[Path], tuple[str, ...]]:
    """The images among the files, and a remark on the others.

    Raises:
        ValueError: some hold images that cannot be read.
    """
    images: list[Path] = []
    others: Counter[str] = Counter()
    for file in files:
        ending = file.suffix.lower()
        if ending in UNREADABLE:
            raise ValueError(
                f"--data {folder}: {file} has an unsupported file type; convert it to PNG or JPEG, "
                "or remove it"
            )
        if ending in IMAGES or (not ending and _looks_like_an_image(file)):
            images.append(file)
        else:
            others[ending or "without an ending"] += 1
    kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(others.items()))
    return images, (f"files that are not images are left out: {kinds}",) if kinds else ()


def _looks_like_an_image(file: Path) -> bool:
    with file.open("rb") as opened:
        start = opened.read(12)
    signatures = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*")
    return start.startswith(signatures) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")
