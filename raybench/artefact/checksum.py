"""A checksum that is stored inside the content that it covers.

32 hex digits of BLAKE2b over the whole content, with zeros in place of the digits.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from itertools import chain

DIGITS = 32
UNSET = b"0" * DIGITS
DAMAGED = "truncated or altered; copy it again, or write it again"


def sealed(content: bytes, place: int) -> bytes:
    """The content with its checksum written over the zeros at `place`."""
    assert content[place : place + DIGITS] == UNSET
    return content[:place] + _digits([content]) + content[place + DIGITS :]


def require(begin: bytes, place: int, rest: Iterable[bytes] = ()) -> None:
    """Raises ValueError if the checksum at `place` of `begin` does not match all parts."""
    stored = begin[place : place + DIGITS]
    unsealed = begin[:place] + UNSET + begin[place + DIGITS :]
    if _digits(chain([unsealed], rest)) != stored:
        raise ValueError(f"its checksum is wrong: it is {DAMAGED}")


def _digits(parts: Iterable[bytes]) -> bytes:
    digest = blake2b(digest_size=DIGITS // 2)
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode()
