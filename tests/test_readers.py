"""The readers of the tables: pandas, Polars, DuckDB and ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pytest
from table_rows import ABOUT, epoch_row, opened, schemas, trial_row
from table_rows import tmp_path as tmp_path

from raybench.experiment import flatten
from raybench.results import store
from raybench.results.front import front
from raybench.results.read import read
from raybench.techniques.prune import Prune
from trainers.pruning import base


@pytest.fixture(params=[0, 1, 3])
def written(request, tmp_path, monkeypatch) -> tuple[Path, int]:
    """A sweep of so many trials of two epochs, in several parts, as it lies there while it runs."""
    monkeypatch.setattr(store, "PART_ROWS", 2)
    table = opened(tmp_path)
    for number in range(request.param):
        prune = Prune(final_sparsity=0.5) if number else None
        row = trial_row(number, **flatten(replace(base, prune=prune)), accuracy=0.1 * number)
        table.put_trial(row)
        for epoch in (1, 2):
            table.put_epoch(epoch_row(number, epoch, accuracy=0.1 * number))
        table.snapshot()
    return tmp_path, request.param


class TestReaders:
    def test_pandas(self, written):
        folder, count = written
        trials, epochs = pd.read_parquet(folder / "trials"), pd.read_parquet(folder / "epochs")
        assert (len(trials), len(epochs)) == (count, 2 * count)
        assert list(trials.columns) == schemas()[0].names
        assert list(epochs.columns) == schemas()[1].names
        assert trials["prune.final_sparsity"].isna().sum() == min(count, 1)

    def test_polars(self, written):
        folder, count = written
        trials = pl.read_parquet(folder / "trials" / "*.parquet")
        epochs = pl.read_parquet(folder / "epochs" / "*.parquet")
        assert (trials.height, epochs.height) == (count, 2 * count)
        assert trials.columns == schemas()[0].names
        assert trials.schema["prune.final_sparsity"] == pl.Float64
        assert trials["prune.final_sparsity"].null_count() == min(count, 1)

    def test_duckdb(self, written):
        folder, count = written
        asked = 'count(*), count("prune.final_sparsity")'
        trials = duckdb.sql(f"select {asked} from '{folder}/trials/*.parquet'").fetchall()
        epochs = duckdb.sql(f"select epoch from '{folder}/epochs/*.parquet'").fetchall()
        assert trials == [(count, max(0, count - 1))]
        assert len(epochs) == 2 * count

    def test_ours(self, written):
        folder, count = written
        results = read(folder)
        assert (len(results.trials), len(results.epochs)) == (count, 2 * count)
        assert results.objectives == ABOUT["objectives"]
        assert results.trials["recipe.epochs"].dtype == "Int64"
        assert front(results.trials, results.objectives).empty  # none is complete

    def test_ours_explains_what_it_cannot_read(self, tmp_path):
        with pytest.raises(ValueError, match="holds no results"):
            read(tmp_path)
        opened(tmp_path).close()
        (tmp_path / "trials/trials.parquet").write_bytes(b"PAR1 and no more")
        with pytest.raises(ValueError, match=f"{tmp_path}/trials/trials.parquet is damaged"):
            read(tmp_path)
