"""Column: the one declaration of a column that a table can have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """Type, unit and meaning. Whoever reports a column declares it, once."""

    type: type
    """int, float, bool or str."""
    unit: str
    """As in "s", "bytes", "share" (0 to 1), "nats"; "" for a count or a text."""
    text: str
    """One sentence for `docs/columns.md` and the Parquet field's metadata."""
