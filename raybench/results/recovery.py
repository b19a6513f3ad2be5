"""What a damaged or lost log knew, taken back from the tables.

The tables are derived from the log, so where its checksums agree nothing is read from them. Where
lines are damaged, or the tables come from more records than the log has, each row is taken from
where it is whole: one that has ended from either side, one that runs from the log.
"""

from __future__ import annotations

import re
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raybench.results import log, schema
from raybench.results.core import FINISHED
from raybench.results.log import Record
from raybench.results.rows import Row

RECORDS = "raybench.records"
"""Metadata of the table of trials: from how many records of the log it was made."""
OURS = re.compile(r"trials/trials\.parquet|epochs/epochs-\d{5}\.parquet")
BROKEN = (pa.ArrowException, OSError, ValueError, KeyError)
"""What reading a damaged Parquet file may raise."""


def heading(trials: pa.Schema, epochs: pa.Schema) -> Row:
    """The first record of a log: the version, the columns, and what the tables are about."""
    columns = "\n".join(f"{field.name} {field.type}" for field in [*trials, *epochs])
    return {
        "schema": schema.VERSION,
        "columns": zlib.crc32(columns.encode()),
        "about": {k: v for k, v in schema.about(trials).items() if k != "schema"},
    }


def about(folder: Path) -> dict[str, Any] | None:
    """What the sweep in `folder` is about, by its log, else by its table; None for a new folder.

    Raises:
        ValueError: there are tables, but neither they nor a log tell what they are.
    """
    found = log.survey(log.path_in(folder))
    if found.sweep is not None:
        return dict(found.sweep["about"])
    table = folder / "trials/trials.parquet"
    if not table.exists():
        return None
    try:
        return {k: v for k, v in schema.about(pq.read_schema(table)).items() if k != "schema"}
    except BROKEN as error:
        raise ValueError(
            f"{folder} holds tables of unknown origin: {log.path_in(folder)} and {table} cannot "
            f"be read ({_said(error)}). Take another --name, or move the folder away"
        ) from error


def made_whole(folder: Path, trials: pa.Schema, epochs: pa.Schema) -> list[str]:
    """Repairs the log where it is needed; what was restored, a sentence each.

    Raises:
        ValueError: a file in the folders of the tables is none of ours, or the results are of
            another version.
    """
    tables = [*sorted(folder.glob("trials/*")), *sorted(folder.glob("epochs/*"))]
    for path in tables:
        if not OURS.fullmatch(str(path.relative_to(folder))):
            raise ValueError(f"{path} does not belong here; move it away")
    path = log.path_in(folder)
    found = log.survey(path)
    expected = heading(trials, epochs)
    if found.sweep is not None:
        _require_same(folder, path, found.sweep, expected)
    else:
        for table in tables:
            _require_same_table(folder, table, trials if "trials" in table.parts[-2] else epochs)
    if found.damaged or (tables and _records(tables) > found.records):
        return _restored(folder, tables, found, expected)
    if path.exists():
        log.cut_torn_end(path)
    return []


def _restored(folder: Path, tables: list[Path], found: log.Survey, expected: Row) -> list[str]:
    path, remarks = log.path_in(folder), []
    rows: dict[str, list[Row]] = {"trials": [], "epochs": []}
    for table in tables:
        try:
            read = pq.read_table(table, page_checksum_verification=True, use_threads=False)
            rows[table.parent.name] += read.to_pylist()
        except BROKEN as error:
            remarks.append(f"{table} cannot be read ({_said(error)}); it is made anew")
    records = list(_merged(path, rows["trials"], rows["epochs"]))
    if path.exists():
        aside = path.with_name(f"log.damaged-{time.time_ns()}")
        shutil.copyfile(path, aside)
        remarks.append(f"the damaged log is kept as {aside}")
    log.write(path, [("sweep", time.time(), expected), *records])
    what = f"{found.damaged} lines of {path} were damaged" if found.damaged else f"{path} was short"
    taken = len({r[2]["number"] for r in records if r[0] == "trial"})
    return [f"{what}; its {taken} trials were restored from it and from the tables", *remarks]


def _merged(path: Path, trials: list[Row], epochs: list[Row]) -> Iterator[Record]:
    """The records of a log that knows what the old one and the tables knew."""
    known: dict[int, Row] = {}
    started: dict[int, float] = {}
    ended: dict[int, float] = {}
    heard: dict[tuple[int, int], tuple[float, Row]] = {}
    others: dict[int, list[Record]] = {}
    for record in log.read(path):
        if record is None or record[0] in ("sweep", "sealed", "closed"):
            continue
        kind, when, content = record
        number = content["number"]
        if kind == "trial" and number not in ended:
            known[number] = {**known.get(number, {}), **content}
            started.setdefault(number, when)
            if content.get("status") in FINISHED:
                known[number], ended[number] = content, when
        elif kind == "epoch":
            heard[number, content["epoch"]] = when, content
        elif kind not in ("trial", "epoch"):
            others.setdefault(number, []).append(record)
    now = round(time.time(), 3)
    for row in (_without_nulls(row) for row in trials):
        number = row["number"]
        if number in ended:
            continue
        if row["status"] in FINISHED:
            known[number], ended[number] = row, now
        else:  # a line that set one of its columns may be damaged
            known[number] = {**row, **known.get(number, {})}
        started.setdefault(number, now)
    for row in (_without_nulls(row) for row in epochs):
        heard.setdefault((row["number"], row["epoch"]), (now, row))
    by_number: dict[int, list[Record]] = {}
    for (number, _), (when, content) in sorted(heard.items()):
        by_number.setdefault(number, []).append(("epoch", when, content))
    for number in sorted(known):
        row = known[number]
        if "started" not in row and number not in ended:
            continue  # its first line is gone: it never started
        yield from others.get(number, [])
        yield "trial", started[number], {**row, "status": "RUNNING"}
        yield from by_number.get(number, [])
        if number in ended:
            yield "trial", ended[number], row


def _records(tables: list[Path]) -> int:
    """From how many records of a log the tables were made; 0 where they do not tell."""
    for table in tables:
        if table.parent.name == "trials":
            try:
                return int((pq.read_schema(table).metadata or {}).get(RECORDS.encode(), b"0"))
            except BROKEN:
                return 0
    return 0


def _require_same(folder: Path, path: Path, found: Row, expected: Row) -> None:
    if (found["schema"], found["columns"]) != (expected["schema"], expected["columns"]):
        raise ValueError(
            f"{path} has an older or other schema (version {found['schema']}, this is "
            f"{expected['schema']}); take another --name, or move {folder} away"
        )


def _require_same_table(folder: Path, path: Path, expected: pa.Schema) -> None:
    """Of results without a log: those of an older version had none."""
    try:
        found = pq.read_schema(path)
        version = schema.about(found)["schema"]
    except BROKEN:
        return  # damaged: what is in the other files is taken
    if version != schema.VERSION or not found.equals(expected):
        raise ValueError(
            f"{path} has an older or other schema (version {version}, this is "
            f"{schema.VERSION}); take another --name, or move {folder} away"
        )


def _without_nulls(row: Row) -> Row:
    return {name: value for name, value in row.items() if value is not None}


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
