"""Rows: the rows of one table in memory; rows that no longer change are stored as Arrow.

Arrow takes less memory than dicts, and needs no conversion for the next Parquet file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import pyarrow as pa

Row = dict[str, Any]
Key = TypeVar("Key", int, tuple[int, int])
CHUNKS = 64  # pieces of Arrow after which they are combined


class Rows(Mapping[Key, Row]):
    """Rows by number, or by number and epoch."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._open: dict[Key, Row] = {}
        self._frozen: list[pa.Table] = []
        self._place: dict[Key, int] = {}  # index of a frozen row over all pieces

    def __setitem__(self, key: Key, row: Row) -> None:
        if key in self._place:
            raise KeyError(f"row {key} has ended and can no longer change")
        self._open[key] = row

    def __getitem__(self, key: Key) -> Row:
        if key in self._open:
            return self._open[key]
        place = self._place[key]
        for piece in self._frozen:
            if place < piece.num_rows:
                return dict(piece.slice(place, 1).to_pylist()[0])
            place -= piece.num_rows
        raise KeyError(key)

    def __iter__(self) -> Iterator[Key]:
        yield from self._place
        yield from self._open

    def __len__(self) -> int:
        return len(self._place) + len(self._open)

    @property
    def frozen(self) -> int:
        """Number of frozen rows."""
        return len(self._place)

    def freeze(self, keys: Iterable[Key]) -> None:
        """Makes these rows immutable."""
        ended = {key: self._open[key] for key in keys}
        if not ended:
            return
        self._frozen.append(as_table(ended.values(), self.schema))
        for key in ended:
            self._place[key] = len(self._place)
            del self._open[key]
        if len(self._frozen) > CHUNKS:
            self._frozen = [pa.concat_tables(self._frozen).combine_chunks()]

    def discard(self, keys: Iterable[Key]) -> None:
        """Drops the rows with these keys that are not frozen."""
        for key in keys:
            self._open.pop(key, None)

    def table(self) -> pa.Table:
        """All rows, in the order of their keys."""
        return self._sorted([*self._frozen, as_table(self._open.values(), self.schema)])

    def open_table(self) -> pa.Table:
        """The rows that are not frozen, in the order of their keys."""
        return self._sorted([as_table(self._open.values(), self.schema)])

    def frozen_table(self) -> pa.Table:
        """The frozen rows, in the order of their keys."""
        return self._sorted(self._frozen)

    def drop_frozen(self) -> None:
        """Drops the frozen rows."""
        self._frozen, self._place = [], {}

    def _sorted(self, pieces: list[pa.Table]) -> pa.Table:
        together = pa.concat_tables([self.schema.empty_table(), *pieces])
        return together.sort_by([("number", "ascending"), ("epoch", "ascending")])


def as_table(rows: Iterable[Row], schema: pa.Schema) -> pa.Table:
    """Rows as Arrow. NaN and infinity become null, because they would distort comparisons."""
    listed = list(rows)
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in listed]
        if field.type == pa.float64():
            values = [v if v is not None and math.isfinite(v) else None for v in values]
        columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=schema)
