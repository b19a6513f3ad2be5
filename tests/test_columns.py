"""Every column is declared once, described, and the same in all sweeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from table_rows import tmp_path as tmp_path

from raybench import report
from raybench.experiment import Experiment, flatten, tables, technique_types
from raybench.results import core
from raybench.results.store import Store
from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from raybench.techniques.switch import Switch
from trainers import pruning, switch_vit

DOCS = Path(__file__).parent.parent / "docs" / "columns.md"


@pytest.fixture
def written(tmp_path) -> Callable[[str, Experiment], Path]:
    """The folder of a sweep with one trial of an experiment."""

    def write(name: str, experiment: Experiment, **metrics: float) -> Path:
        about = {"family": experiment.family, "sweep": name, "objectives": {"accuracy": "max"}}
        store = Store(tmp_path / name, *tables.schemas(about))
        row = {"sweep": name, "trial": f"{name}-0", "number": 0, "status": "COMPLETE"}
        store.put_epoch({"sweep": name, "trial": f"{name}-0", "number": 0, "epoch": 1, **metrics})
        store.put_trial({**row, **flatten(experiment), **metrics})
        store.close()
        return tmp_path / name

    return write


class TestDeclarations:
    def test_every_column_has_a_sentence(self):
        for name, column in {**tables.trial_columns(), **tables.epoch_columns()}.items():
            assert column.text.endswith("."), name
            assert "\n" not in column.text, name
            assert column.type in (int, float, bool, str), name

    def test_every_owner_appears_once_in_the_docs(self):
        owned = [name for columns in tables.by_owner().values() for name in columns]
        assert set(owned) == {*tables.trial_columns(), *tables.epoch_columns()}
        twice = {name for name in owned if owned.count(name) > 1}
        assert twice == {"structured_layers"}  # of Monarch and LowRank, one declaration
        assert Monarch.columns["structured_layers"] is LowRank.columns["structured_layers"]

    def test_every_technique_has_a_coverage(self):
        for name in technique_types():
            column = tables.metric_columns()[f"{name}_coverage"]
            assert (column.type, column.unit) == (float, "share")
            assert f"`{name}`" in column.text

    def test_the_core_knows_the_fields_of_an_experiment(self):
        """Reports tell inputs from outcomes by these names, without importing the class."""
        types = technique_types()
        flat = [f.name for f in fields(Experiment) if f.name in core.INPUTS]
        groups = [f.name for f in fields(Experiment) if f.name in core.SETTINGS]
        assert flat == list(core.INPUTS)
        assert groups == list(core.SETTINGS)
        assert {*flat, *groups, *types} == {f.name for f in fields(Experiment)}
        assert all(is_dataclass(getattr(pruning.base, name)) for name in groups)

    def test_inputs_are_described_by_their_docstrings(self):
        texts = {name: column.text for name, column in tables.inputs().items()}
        assert list(texts) == list(flatten(pruning.base))
        assert texts["recipe.crop"] == "Largest shift of the random crop, in pixels; 0 is no crop."
        assert texts["quantize.bits"].startswith("Bits of weights: 2 to 8")

    def test_the_docs_are_what_the_command_prints(self, capsys):
        assert report.run(report.Report(columns=True)) == 0
        assert capsys.readouterr().out == DOCS.read_text(), (
            "run python -m raybench.report --columns > docs/columns.md"
        )


class TestTables:
    def test_fields_carry_description_and_unit(self, written):
        folder = written("sweep", pruning.base)
        for part in ("trials", "epochs"):
            (path,) = (folder / part).iterdir()
            field = pq.read_schema(path).field("accuracy")
            assert field.metadata == {
                b"description": core.METRICS["accuracy"].text.encode(),
                b"unit": b"share",
            }

    def test_of_two_families_concatenate(self, written):
        sparse = written("pruning", pruning.base, accuracy=0.5, sparsity=0.6)
        experts = replace(switch_vit.base, switch=Switch(experts=4))
        mixed = written("experts", experts, accuracy=0.7, load_cv=0.1)
        for part in ("trials", "epochs"):
            one, other = (pd.read_parquet(folder / part) for folder in (sparse, mixed))
            assert list(one.columns) == list(other.columns)
            both = pd.concat([one, other], ignore_index=True)
            assert both["accuracy"].tolist() == [0.5, 0.7]
            assert both["load_cv"].isna().tolist() == [True, False]
        whole = pd.read_parquet([*sparse.glob("trials/*"), *mixed.glob("trials/*")])
        assert whole["family"].tolist() == ["pruning", "switch_vit"]
