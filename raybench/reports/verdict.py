"""The verdict of a study, as its folder keeps it, for the report and the page."""

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
    """By title."""


def read(folder: Path) -> Verdict | None:
    """None where the folder is no study's, or its study has not ended.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        tables = {title: pd.DataFrame(rows) for title, rows in content["tables"].items()}
        return Verdict(content["sentence"], tuple(content["reasons"]), tables)
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); the same raybench.compare writes it anew"
        ) from error
