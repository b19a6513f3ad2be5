"""Experts and Monarch matrices as a user runs them, on a Ray of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from raybench import artefact
from raybench.reports.summary import family_table
from raybench.results.read import read

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent
DEADLINE_S = 300.0


def test_two_workers_share_the_experts(tmp_path: Path) -> None:
    stored = tmp_path / "model.safetensors"
    trained = subprocess.run(
        [
            *(sys.executable, "-m", "raybench.train", "switch_vit", "--model", "vit32x2"),
            *("--data", "digits", "--subset", "0.2", "--recipe.epochs", "1"),
            *("--switch.experts", "4", "--switch.blocks", "all"),
            *("--parallel.strategy", "expert", "--workers", "2"),
            *("--results", str(tmp_path), "--store", str(stored)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert trained.returncode == 0, trained.stderr
    row = pd.read_parquet(tmp_path / "switch_vit-runs" / "trials").iloc[0]
    assert row["status"] == "COMPLETE"
    assert row["parallel.strategy"] == "expert"
    assert row["parallel.workers"] == 2
    assert row["sent_bytes_per_step"] > 0
    assert stored.stat().st_size == row["model_bytes"]
    assert sum(p.numel() for p in artefact.load(stored).parameters()) == row["parameters"]


@pytest.mark.parametrize(
    ("space", "column"),
    [
        pytest.param("experts", "switch.experts", marks=pytest.mark.nightly),
        ("monarch", "monarch.blocks"),
        pytest.param("super_model", "quantize.bits", marks=pytest.mark.nightly),
    ],
)
def test_sweep_on_digits_then_report(space: str, column: str, tmp_path: Path) -> None:
    """The shipped space on real images: every trial ends, and the family's table has its rows."""
    swept = subprocess.run(
        [
            *(sys.executable, "-m", "raybench.tune", "--space", f"search_spaces/{space}.py"),
            *("--trials", "4", "--epochs", "1", "--subset", "0.1", "--keep", "all"),
            *("--results", str(tmp_path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert swept.returncode == 0, swept.stderr
    results = read(tmp_path / space)
    trials = results.trials
    assert trials["status"].tolist() == ["COMPLETE"] * 4
    assert trials[column].notna().any(), "all four trials were dense"
    for row in trials.to_dict("records"):
        model = artefact.load(tmp_path / space / "models" / f"{row['trial']}.safetensors")
        assert sum(p.numel() for p in model.parameters()) == row["parameters"]
    table = family_table(results, threshold=0.05)
    assert table is not None
    assert table["trials"].sum() == 4
