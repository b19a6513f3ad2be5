"""Atomic writes of files that another process may read or copy at any time.

A power failure may lose the newest file; `log.replace` is for files that must survive it.
"""

from __future__ import annotations

import shutil
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Writes a text."""
    partial = _partial(path)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def copy(source: Path, path: Path) -> None:
    """Writes the content of another file."""
    partial = _partial(path)
    shutil.copyfile(source, partial)
    partial.replace(path)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")
