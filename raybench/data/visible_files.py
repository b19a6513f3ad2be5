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
"""Types of files with images that Pillow cannot read. Skipping them would silently lose data."""
ARCHIVES = frozenset([".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"])
LEFT_BEHIND = frozenset(["thumbs.db", "desktop.ini", "@eadir", "lost+found", "$recycle.bin"])


def visible(folder: Path) -> tuple[list[Path], list[Path]]:
    """All files and all folders below a folder, sorted, without hidden names and leftovers.

    Links are followed.

    Raises:
        ValueError: the target of a link is missing.
    """
    entries = sorted(_walk(folder, [os.path.realpath(folder)]))
    return (
        [path for path, is_folder in entries if not is_folder],
        [path for path, is_folder in entries if is_folder],
    )


def _walk(folder: Path, above: list[str]) -> Iterator[tuple[Path, bool]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            path = folder / entry.name
            if entry.is_dir():
                real = os.path.realpath(path)
                if real not in above:  # a link to a parent folder would give an endless loop
                    yield path, True
                    yield from _walk(path, [*above, real])
            elif entry.is_file():
                yield path, False
            elif entry.is_symlink():  # skipping it would silently lose images
                raise ValueError(
                    f"--data: {path} is a link to {os.readlink(path)}, which is missing; restore "
                    "that or remove the link"
                )


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__")) or name.lower() in LEFT_BEHIND


def images_of(folder: Path, files: Iterable[Path]) -> tuple[list[Path], tuple[str, ...]]:
    """The images among the files, and a remark on the others.

    Raises:
        ValueError: some files contain images that cannot be read.
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
    packed = sorted(ending for ending in others if ending in ARCHIVES)
    if packed and not images:
        raise ValueError(f"--data {folder}: no images there, but {packed[0]} files: unpack them")
    kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(others.items()))
    return images, (f"files that are not images are left out: {kinds}",) if kinds else ()


def without_images(folders: Iterable[Path], images: Iterable[Path]) -> list[Path]:
    """The folders without images at any depth, except those inside another of them."""
    with_images = {parent for image in images for parent in image.parents}
    empty = {folder for folder in folders if folder not in with_images}
    return sorted(folder for folder in empty if folder.parent not in empty)


def _looks_like_an_image(file: Path) -> bool:
    with file.open("rb") as opened:
        start = opened.read(12)
    signatures = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*")
    return start.startswith(signatures) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")
