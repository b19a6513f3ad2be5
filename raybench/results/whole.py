"""Files that another process may read or copy at any moment: each is written whole or not at all.

A power failure may lose the newest; `log.replace` is for what it must not.
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
