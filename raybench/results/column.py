"""Column: the declaration of a table column."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """Type, unit and meaning. The code that reports a column declares it, once."""

    type: type
    """int, float, bool or str."""
    unit: str
    """For example "s", "bytes", "share" (0 to 1) or "nats"; "" for a count or a text."""
    text: str
    """One sentence for `docs/columns.md` and the Parquet field's metadata."""
