"""The schema of the tables: one, whatever a sweep varies."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from table_rows import ABOUT, opened, schemas, trial_row
from table_rows import tmp_path as tmp_path

from raybench.experiment import columns, flatten, tables
from raybench.results import core, schema
from raybench.techniques.prune import Prune
from trainers.pruning import base


class TestSchema:
    def test_is_the_same_whatever_was_suggested(self, tmp_path):
        for name, prune in {"dense": None, "sparse": Prune(final_sparsity=0.5)}.items():
            table = opened(tmp_path / name)
            table.put_trial(trial_row(0, **flatten(replace(base, prune=prune))))
            table.close()
        empty = opened(tmp_path / "empty")
        empty.close()
        read_back = [
            pq.read_schema(tmp_path / name / "trials/trials.parquet")
            for name in ("dense", "sparse", "empty")
        ]
        for other in read_back[1:]:
            assert all(
                one.equals(field, check_metadata=True)
                for one, field in zip(read_back[0], other, strict=True)
            )
            assert schema.about(other) == schema.about(read_back[0])

    def test_holds_experiment_metrics_and_provenance(self):
        trials, epochs = schemas()
        metrics = set(tables.metric_columns())
        assert set(columns()) | metrics | set(core.PROVENANCE) < set(trials.names)
        assert metrics < set(epochs.names)
        assert trials.field("prune.final_sparsity").type == pa.float64()
        assert trials.field("recipe.flip").type == pa.bool_()
        assert trials.field("model_bytes").type == pa.int64()
        assert len(set(trials.names)) == len(trials.names)

    def test_says_what_the_sweep_was_about(self):
        assert schema.about(schemas()[0]) == {"schema": schema.VERSION, **ABOUT}
        with pytest.raises(ValueError, match="not written by raybench"):
            schema.about(pa.schema([("number", pa.int64())]))
