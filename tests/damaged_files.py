"""Ways in which files are damaged: on disks, in transfers, by editors. Each is drawn by a seed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

BLOCK = 4096  # bytes of a disk block


def damaged(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Other bytes than `content`, and the name of the damage."""
    while True:
        name = draw.choice([*DAMAGES])
        changed = bytearray(content)
        DAMAGES[name](changed, draw)
        if changed != content:
            return bytes(changed), name


def _flipped(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def _truncated(content: bytearray, draw: random.Random) -> None:
    kept = draw.choice([draw.randrange(len(content)), draw.randrange(64), len(content) - 1])
    del content[kept:]


def _swapped(content: bytearray, draw: random.Random) -> None:
    """Two blocks of the same length change places."""
    size = min(draw.choice([4, 64, 512, BLOCK]), len(content) // 3)
    first = draw.randrange(len(content) - 2 * size)
    second = draw.randrange(first + size, len(content) - size)
    one, other = content[first : first + size], content[second : second + size]
    content[first : first + size], content[second : second + size] = other, one


def _inserted(content: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(content) + 1)
    content[place:place] = draw.randbytes(draw.choice([1, 8, 512]))


def _deleted(content: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(content))
    del content[place : place + draw.choice([1, 8, 512, BLOCK])]


def _zeroed(content: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(content))
    end = min(len(content), place + draw.choice([1, 512, BLOCK]))
    content[place:end] = bytes(end - place)


def _repeated(content: bytearray, draw: random.Random) -> None:
    """A block is written twice."""
    place = draw.randrange(len(content))
    content[place:place] = content[place : place + BLOCK]


def _appended(content: bytearray, draw: random.Random) -> None:
    content += draw.choice([b"\0", b"\n", bytes(BLOCK), draw.randbytes(100)])


def _number_changed(content: bytearray, draw: random.Random) -> None:
    """A digit of a text in the file: a shape, an offset, a mean, a name."""
    digits = [match.start() for match in re.finditer(rb"\d", content)]
    content[draw.choice(digits)] = ord(draw.choice("0123456789"))


def _begin_changed(content: bytearray, draw: random.Random) -> None:
    """A byte of the first fields: lengths, versions, checksums."""
    content[draw.randrange(64)] = draw.randrange(256)


def _end_changed(content: bytearray, draw: random.Random) -> None:
    """A byte of the last fields: metadata of graphs, the directory of zip files, checksums."""
    content[-draw.randrange(1, 200)] = draw.randrange(256)


def _lines_changed(content: bytearray, draw: random.Random) -> None:
    """A transfer as text: other ends of lines."""
    content[:] = content.replace(b"\n", b"\r\n") if draw.random() < 0.5 else content.rstrip(b"\0 ")


DAMAGES: dict[str, Callable[[bytearray, random.Random], None]] = {
    "flipped": _flipped,
    "truncated": _truncated,
    "swapped": _swapped,
    "inserted": _inserted,
    "deleted": _deleted,
    "zeroed": _zeroed,
    "repeated": _repeated,
    "appended": _appended,
    "number changed": _number_changed,
    "begin changed": _begin_changed,
    "end changed": _end_changed,
    "lines changed": _lines_changed,
}
