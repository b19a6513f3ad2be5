"""The tracebacks of failed trials: one file each, named in the trial's row."""

from __future__ import annotations

from pathlib import Path

from raybench.results import whole


def keep(folder: Path, number: int, traceback: str) -> str:
    """Writes the traceback of trial `number` of the sweep in `folder`.

    Returns:
        Its path relative to `folder`: the column `failure`.
    """
    path = folder / ".state" / "failures" / f"{number}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.write(path, traceback.rstrip("\n") + "\n")
    return str(path.relative_to(folder))
