"""Range coding of small integers with static models of a few bytes each.

The coder is constriction's. A model is a histogram over buckets of symbols, one byte per bucket:
the cost of a bucket, -log2 of its share, in eighths of a bit. Rounding it costs 0.0003 bits per
symbol, while exact counts of an 8-bit layer would cost up to 18 % of its stream. One coder is used
for a whole file, so the up to four bytes that end a stream occur only once.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

# Constriction's modules are only attributes (`from constriction.stream.queue import` fails), and
# they are not typed.
RangeDecoder: Any = constriction.stream.queue.RangeDecoder
RangeEncoder: Any = constriction.stream.queue.RangeEncoder
Categorical: Any = constriction.stream.model.Categorical

# 2 ** (-n / 8), written out: `2.0 ** x` may differ in its last bit between C libraries, and the
# decoder needs exactly the encoder's numbers. They are scaled by powers of two.
EIGHTHS = np.array(
    [
        1.0,
        0.9170040432046712,
        0.8408964152537145,
        0.7711054127039704,
        0.7071067811865476,
        0.6484197773255048,
        0.5946035575013605,
        0.5452538663326288,
    ]
)
ABSENT = 255  # no symbol of the bucket occurs

Model = bytes
"""The cost of each bucket, in eighths of a bit."""


@lru_cache(maxsize=16)
def buckets(largest: int) -> NDArray[np.intp]:
    """The bucket of each code from -largest to largest; it depends only on the magnitude.

    Magnitudes below 8 have a bucket each, larger ones share four buckets per octave, because
    histograms of weights are smooth there. 24 buckets hold the 255 codes of 8 bits.
    """
    magnitudes = np.abs(np.arange(-largest, largest + 1))
    octave = np.floor(np.log2(np.maximum(magnitudes, 8))).astype(np.intp)
    shared = 8 + 4 * (octave - 3) + (magnitudes - 2**octave) // 2 ** (octave - 2)
    return np.where(magnitudes < 8, magnitudes, shared).astype(np.intp)


def model(symbols: NDArray[np.integer], bucket_of: NDArray[np.intp]) -> Model:
    """The static model of these symbols, each an index into `bucket_of`."""
    by_symbol = np.bincount(symbols, minlength=len(bucket_of))
    counts = np.bincount(bucket_of, weights=by_symbol)
    with np.errstate(divide="ignore"):
        eighths = np.rint(-8 * np.log2(counts / max(1, counts.sum())))
    return bytes(np.where(counts > 0, np.minimum(eighths, ABSENT - 1), ABSENT).astype(np.uint8))


def estimated_bytes(symbols: NDArray[np.integer], bucket_of: NDArray[np.intp]) -> float:
    """Bytes of the symbols and their model, without encoding them."""
    counts = np.bincount(symbols, minlength=len(bucket_of))
    shares = _shares(model(symbols, bucket_of), bucket_of)
    present = counts > 0
    return int(bucket_of.max()) + 1 - float((counts[present] * np.log2(shares[present])).sum()) / 8


def append(
    coder: Any, symbols: NDArray[np.integer], symbol_model: Model, bucket_of: NDArray[np.intp]
) -> None:
    coder.encode(symbols.astype(np.int32), _categorical(symbol_model, bucket_of))


def take(
    coder: Any, count: int, symbol_model: Model, bucket_of: NDArray[np.intp]
) -> NDArray[np.int32]:
    """The next symbols.

    Raises:
        ValueError: they were not coded with this model.
    """
    try:
        return np.asarray(
            coder.decode(_categorical(symbol_model, bucket_of), count), dtype=np.int32
        )
    except AssertionError as error:  # constriction's "invalid compressed data"
        raise ValueError(str(error)) from error


def entropy_bytes(symbols: NDArray[np.integer]) -> float:
    """The zeroth-order entropy: the minimum for a static coder whose model costs nothing."""
    counts = np.bincount(symbols.ravel())
    shares = counts[counts > 0] / max(1, symbols.size)
    return -float((shares * np.log2(shares)).sum()) * symbols.size / 8


def _shares(symbol_model: Model, bucket_of: NDArray[np.intp]) -> NDArray[np.float64]:
    """The share of every symbol, equal within a bucket; they sum to 1 up to rounding."""
    cost = np.frombuffer(symbol_model, np.uint8).astype(np.intp)
    of_bucket = np.ldexp(EIGHTHS[cost % 8], -(cost // 8))
    shares = (of_bucket / np.bincount(bucket_of))[bucket_of]
    return shares / math.fsum(shares)


def _categorical(symbol_model: Model, bucket_of: NDArray[np.intp]) -> Any:
    return Categorical(_shares(symbol_model, bucket_of).astype(np.float32), perfect=False)
