"""The tables of a GPU: `python -m raybench.bench gpu --part a --minutes 9`, without Ray or Optuna.

A part measures its subjects one after another, writes a Parquet file after each of them, and begins
none that would not end in time. `docs/gpu.md` is printed from all parts' files.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from raybench.bench.gpu_parts import page
from raybench.bench.gpu_parts.rows import Row, write
from raybench.bench.gpu_parts.subjects import subjects
from raybench.hardware import gpu
from raybench.training import process

FOLDER = Path("results/gpu")
claims: dict[str, str] = {}


def measure(
    minutes: float = 9.0, part: str = "a", folder: Path = FOLDER, printed: Path | None = None
) -> dict[str, float]:
    """Measures a part; returns how many subjects and values came back.

    Without a GPU every subject is a few steps on the CPU, which only shows that it runs.

    Args:
        printed: the page to print from all files in the folder, such as docs/gpu.md.

    Raises:
        ValueError: there is no such part, or the time is not above 0.
    """
    if not minutes > 0:
        raise ValueError(f"--minutes is {minutes}: above 0, such as 9")
    process.prepare(threads=1)
    ends = time.monotonic() + 60 * minutes
    rows: list[Row] = []
    done = 0
    every = subjects(part, small=not gpu.available())
    for subject in every:
        left = ends - time.monotonic()
        if gpu.available() and subject.seconds > left:
            print(f"{subject.name}: no time left ({left:.0f} s)", file=sys.stderr, flush=True)
            continue
        began = time.monotonic()
        for row in subject.rows():
            rows.append(row)
            if time.monotonic() > ends:
                break
        else:
            done += 1
        write(folder, part, rows)
        print(f"{subject.name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if printed is not None:
        page.write(printed, folder)
    return {"subjects": done, "of_subjects": len(every), "values": len(rows)}
