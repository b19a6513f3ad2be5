"""The Parquet file of a study's verdicts, one row per arm."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pandas as pd

from raybench.results import log

NAME = "verdict.parquet"


def write(verdicts: pd.DataFrame, folder: Path) -> None:
    """Writes the file into a study's folder, atomically."""
    content = BytesIO()
    verdicts.to_parquet(content, index=False)
    log.replace(folder / NAME, content.getbuffer())
