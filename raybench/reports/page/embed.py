"""Data inside a page: JSON that cannot end its script element, and rounded numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

DIGITS = 5  # enough for a plot; all digits of 2,000 trials would double the page's data


def embedded(content: Any) -> str:
    """JSON for a script element: without `<`, `>` and `&`, so that `</script>` cannot end it."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":  # they occur only within strings, where JSON allows an escape
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def numbers(values: Iterable[Any], scale: float = 1.0) -> list[float | int | None]:
    """Values of a column for a plot; None for a missing one."""
    return [_number(value, scale) for value in values]


def _number(value: Any, scale: float) -> float | int | None:
    if pd.isna(value) or abs(value) == float("inf"):
        return None
    short = float(f"{scale * float(value):.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 2**53 else short
