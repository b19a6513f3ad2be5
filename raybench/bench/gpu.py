"""The tables of a GPU: `python -m raybench.bench gpu --part a --minutes 9`, without Ray or Optuna.

A part measures its subjects one after another in a separate process, each with a deadline, and
writes its Parquet file after each one. It skips subjects that would not end in time; called again,
it continues with the missing ones. `docs/gpu.md` is printed from the files of all parts.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from raybench.bench.gpu_parts import page
from raybench.bench.gpu_parts.child import Child, Failure
from raybench.bench.gpu_parts.rows import FAILED, SECONDS, Row, read, stamped, write
from raybench.bench.gpu_parts.subjects import subjects
from raybench.hardware import gpu

FOLDER = Path("results/gpu")
LATE = 2.5  # a subject's deadline, relative to its estimated time
CLOSING_S = 5.0  # part of the time limit, reserved for the last file and the page
claims: dict[str, str] = {}


def measure(
    minutes: float = 9.0, part: str = "a", folder: Path = FOLDER, printed: Path | None = None
) -> dict[str, float]:
    """Measures a part; returns the numbers of subjects and values.

    Without a GPU every subject is a few steps on the CPU, which only shows that it runs. On a GPU,
    subjects that are complete in the folder's file for the same kind of GPU are not repeated;
    remove the file to measure them again.

    Args:
        part: a letter, or "page", which measures nothing.
        printed: the page to print from all files in the folder, such as docs/gpu.md.

    Raises:
        ValueError: there is no such part, or the time is not above 0.
    """
    if not minutes > 0:
        raise ValueError(f"--minutes is {minutes}: above 0, such as 9")
    ends = time.monotonic() + 60 * minutes - CLOSING_S
    if part == "page":
        if printed is None:
            raise ValueError("--part page prints a page: name it, as --page docs/gpu.md")
        page.write(printed, folder)
        return {}
    there, name = gpu.available(), gpu.name()
    every = subjects(part, small=not there)
    before = read(folder, part)
    rows = [row for row in before if there and row["gpu"] == name]
    others = [row for row in before if row["gpu"] and row["gpu"] != name]  # of other GPUs
    complete = {row["subject"] for row in rows if row["figure"] == SECONDS}
    failed = 0
    child = Child()
    try:
        for subject in every:
            left = ends - time.monotonic()
            if subject.name in complete:
                continue
            if left <= 0 or (there and subject.seconds > left):
                _say(f"{subject.name}: no time left ({left:.0f} s)")
                continue
            began = time.monotonic()
            measured: list[Row] = []
            failure: Failure | None = None
            deadline_s = min(left, LATE * subject.seconds) if there else left
            for row in child.rows(subject, deadline_s):
                if isinstance(row, Failure):
                    failure = row
                else:
                    measured.append(row)
            took = time.monotonic() - began
            if failure is None:
                complete.add(subject.name)
                measured.append(Row(part, subject.name, "", SECONDS, took))
            else:
                failed += 1
                measured.append(Row(part, subject.name, "", FAILED, 1.0, note=failure.reason))
            # Replaces incomplete rows of an earlier call.
            sides = {(row.subject, row.side, row.seed) for row in measured}
            rows = [r for r in rows if (r["subject"], r["side"], r["seed"]) not in sides]
            rows += [stamped(row) for row in measured]
            write(folder, part, others + rows)
            _say(f"{subject.name}: {took:.0f} s" + (f", {failure.reason}" if failure else ""))
    finally:
        child.close()
    if printed is not None:
        page.write(printed, folder)
    return {
        "subjects": len(complete & {subject.name for subject in every}),
        "of_subjects": len(every),
        "failed": failed,
        "values": len(rows),
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
