"""The verdict of a study, read from its folder, for the report and the page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

FILE = "verdict.json"


@dataclass(frozen=True)
class Verdict:
    """A study's result in words and tables."""

    sentence: str
    reasons: tuple[str, ...]
    tables: dict[str, pd.DataFrame]
    """The tables by title."""
    folder: Path
    """Holds verdict.parquet, recipe.json and the recommended model."""


def read(folder: Path) -> Verdict | None:
    """The verdict in the folder; None if it holds no study, or the study has not ended.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        tables = {title: pd.DataFrame(rows) for title, rows in content["tables"].items()}
        return Verdict(content["sentence"], tuple(content["reasons"]), tables, folder)
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); run the same raybench.compare again to restore it"
        ) from error
