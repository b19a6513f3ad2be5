"""The training images of a model, as one short text in its file.

The text is a sketch: the 32 smallest 32-bit digests of the training images, and the names of their
data sets. Two sketches can be merged into the sketch of all their images. A set that contains a
share s of the training images is missed with probability (1 - s)^32, which is 0.001 for a fifth. A
set of 10,000 other images matches by chance with probability 7e-5.
"""

from __future__ import annotations

import base64
import binascii

import numpy as np

LARGEST = 32  # digests in a sketch


class UnreadableSketch(ValueError):
    """A text that `sketch` did not write."""


def sketch(digests: np.ndarray, name: str) -> str:
    """The sketch of images (N,) with these 64-bit digests, from the data set with this name."""
    return _text(np.unique(_short(digests)), [name])


def united(*texts: str) -> str:
    """The sketch of the images of all sketches; empty texts are ignored.

    Raises:
        UnreadableSketch: `sketch` did not write one of them.
    """
    given = [text for text in texts if text]
    if not given:
        return ""
    together = np.unique(np.concatenate([_digests(text) for text in given]))
    names = [name for text in given for name in data_names(text).split(", ")]
    return _text(together, list(dict.fromkeys(names)))


def meets(text: str, digests: np.ndarray) -> bool:
    """Whether one of these images is in the sketch. Raises the errors of `united`."""
    return bool(text) and bool(np.isin(_digests(text), _short(digests)).any())


def data_names(text: str) -> str:
    """Names of the data sets, separated by commas."""
    return text.partition(" ")[2]


def _short(digests: np.ndarray) -> np.ndarray:
    return (digests >> np.uint64(32)).astype("<u4")


def _text(digests: np.ndarray, names: list[str]) -> str:
    content = base64.b64encode(digests[:LARGEST].astype("<u4").tobytes()).decode()
    return f"{content} {', '.join(names)}"


def _digests(text: str) -> np.ndarray:
    try:
        return np.frombuffer(base64.b64decode(text.partition(" ")[0], validate=True), "<u4")
    except (binascii.Error, ValueError) as error:
        raise UnreadableSketch(f"its training record is not readable: {error}") from error
