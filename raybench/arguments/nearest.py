"""Advice for a misspelled name."""

from __future__ import annotations

import difflib


def nearest(name: str, valid: list[str]) -> str:
    """ "did you mean 'lr'?", or the valid names, or a few of many."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    if len(valid) > 50:
        return f"there are {len(valid)}, such as {', '.join(valid[:5])}"
    return f"there are {', '.join(sorted(valid))}"
