"""Restores a damaged or lost log from the tables.

The tables are derived from the log, so they are not read if its checksums agree. If lines are
damaged, or the tables come from more records than the log has, each row is taken from the source
in which it is intact: for a trial that has ended from either, for a running one from the log first.
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
"""Metadata key in the trials table: the number of log records that it was made from."""
OURS = re.compile(r"trials/trials\.parquet|epochs/epochs-\d{5}\.parquet")
BROKEN = (pa.ArrowException, OSError, ValueError, KeyError)
"""Errors that reading a damaged Parquet file may raise."""


def heading(trials: pa.Schema, epochs: pa.Schema) -> Row:
    """The first record of a log: version, columns, and the sweep's description."""
    columns = "\n".join(f"{field.name} {field.type}" for field in [*trials, *epochs])
    return {
        "schema": schema.VERSION,
        "columns": zlib.crc32(columns.encode()),
        "about": {k: v for k, v in schema.about(trials).items() if k != "schema"},
    }


def about(folder: Path) -> dict[str, Any] | None:
    """The description of the sweep in `folder`, from its log or its table; None for a new folder.

    Raises:
        ValueError: there are tables, but neither they nor a log describe the sweep.
    """
    survey = log.survey(log.path_in(folder))
    if survey.sweep is not None:
        return dict(survey.sweep["about"])
    table = folder / "trials/trials.parquet"
    if not table.exists():
        return None
    try:
        return {k: v for k, v in schema.about(pq.read_schema(table)).items() if k != "schema"}
    except BROKEN as error:
        raise ValueError(
            f"{folder} holds tables of unknown origin: {log.path_in(folder)} and {table} cannot "
            f"be read ({_in_one_line(error)}). Use another --name, or move the folder away"
        ) from error


def made_whole(folder: Path, trials: pa.Schema, epochs: pa.Schema) -> list[str]:
    """Repairs the log if needed; returns one sentence per repair.

    Raises:
        ValueError: the folders of the tables contain a foreign file, or the results have another
            version.
    """
    tables = [*sorted(folder.glob("trials/*")), *sorted(folder.glob("epochs/*"))]
    for path in tables:
        if not OURS.fullmatch(str(path.relative_to(folder))):
            raise ValueError(f"{path} does not belong here; move it away")
    path = log.path_in(folder)
    survey = log.survey(path)
    expected = heading(trials, epochs)
    if survey.sweep is not None:
        _require_same(folder, path, survey.sweep, expected)
    else:
        for table in tables:
            _require_same_table(folder, table, trials if "trials" in table.parts[-2] else epochs)
    if survey.damaged or (tables and _records(tables) > survey.records):
        return _restored(folder, tables, survey, expected)
    if path.exists():
        log.cut_torn_end(path)
    return []


def _restored(folder: Path, tables: list[Path], survey: log.Survey, expected: Row) -> list[str]:
    path, remarks = log.path_in(folder), []
    rows: dict[str, list[Row]] = {"trials": [], "epochs": []}
    for table in tables:
        try:
            read = pq.read_table(table, page_checksum_verification=True, use_threads=False)
            rows[table.parent.name] += read.to_pylist()
        except BROKEN as error:
            remarks.append(f"{table} cannot be read ({_in_one_line(error)}); it is rewritten")
    records = list(_merged(path, rows["trials"], rows["epochs"]))
    if path.exists():
        aside = path.with_name(f"log.damaged-{time.time_ns()}")
        shutil.copyfile(path, aside)
        remarks.append(f"the damaged log is kept as {aside}")
    log.write(path, [("sweep", time.time(), expected), *records])
    what = (
        f"{survey.damaged} lines of {path} were damaged" if survey.damaged else f"{path} was short"
    )
    taken = len({r[2]["number"] for r in records if r[0] == "trial"})
    return [f"{what}; its {taken} trials were restored from it and from the tables", *remarks]


def _merged(path: Path, trials: list[Row], epochs: list[Row]) -> Iterator[Record]:
    """The records of a new log with all data of the old one and the tables."""
    trial_rows: dict[int, Row] = {}
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
            trial_rows[number] = {**trial_rows.get(number, {}), **content}
            started.setdefault(number, when)
            if content.get("status") in FINISHED:
                trial_rows[number], ended[number] = content, when
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
            trial_rows[number], ended[number] = row, now
        else:  # a line that set one of its columns may be damaged
            trial_rows[number] = {**row, **trial_rows.get(number, {})}
        started.setdefault(number, now)
    for row in (_without_nulls(row) for row in epochs):
        heard.setdefault((row["number"], row["epoch"]), (now, row))
    by_number: dict[int, list[Record]] = {}
    for (number, _), (when, content) in sorted(heard.items()):
        by_number.setdefault(number, []).append(("epoch", when, content))
    for number in sorted(trial_rows):
        row = trial_rows[number]
        if "started" not in row and number not in ended:
            continue  # its first line is lost, so the trial counts as never started
        yield from others.get(number, [])
        yield "trial", started[number], {**row, "status": "RUNNING"}
        yield from by_number.get(number, [])
        if number in ended:
            yield "trial", ended[number], row


def _records(tables: list[Path]) -> int:
    """The number of log records that the tables were made from; 0 if unknown."""
    for table in tables:
        if table.parent.name == "trials":
            try:
                return int((pq.read_schema(table).metadata or {}).get(RECORDS.encode(), b"0"))
            except BROKEN:
                return 0
    return 0


def _require_same(folder: Path, path: Path, heading_found: Row, expected: Row) -> None:
    if (heading_found["schema"], heading_found["columns"]) != (
        expected["schema"],
        expected["columns"],
    ):
        raise ValueError(
            f"{path} has an older or other schema (version {heading_found['schema']}, this is "
            f"{expected['schema']}); take another --name, or move {folder} away"
        )


def _require_same_table(folder: Path, path: Path, expected: pa.Schema) -> None:
    """Checks results without a log, such as those of an older version."""
    try:
        stored = pq.read_schema(path)
        version = schema.about(stored)["schema"]
    except BROKEN:
        return  # damaged: other files are used instead
    if version != schema.VERSION or not stored.equals(expected):
        raise ValueError(
            f"{path} has an older or other schema (version {version}, this is "
            f"{schema.VERSION}); take another --name, or move {folder} away"
        )


def _without_nulls(row: Row) -> Row:
    return {name: value for name, value in row.items() if value is not None}


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
