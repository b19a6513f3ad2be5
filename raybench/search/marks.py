"""Marks: the epochs of a curve that the search stores."""

from __future__ import annotations

from fractions import Fraction

SHARES = (Fraction(1, 36), Fraction(1, 18), *(Fraction(part, 12) for part in range(1, 13)))
"""Shares of a trial's epochs; denser at the start, where most trials stop."""


def marks(epochs: int) -> list[int]:
    """At most 14 epochs, the last one included."""
    return sorted({max(1, -(-share.numerator * epochs // share.denominator)) for share in SHARES})
