"""The table of plain, pruned and quantized networks, with the reference's figures beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raybench.experiment import flatten, tables
from raybench.reports import summary
from raybench.reports.tables.pruning import REFERENCE
from raybench.results.read import Results, read
from raybench.results.store import Store
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from raybench.training import trainer
from trainers import pruning

ABOUT = {"family": "pruning", "sweep": "s", "objectives": pruning.objectives}
DENSE: dict[str, Any] = {}
SPARSE = {"prune": Prune(final_sparsity=0.6)}
SUPER = SPARSE | {"quantize": Quantize(bits=4)}

# model, techniques, seed, test accuracy, bytes of the file, further columns
LADDER = [
    ("resnet20", DENSE, 0, 0.900, 1_000, {}),
    ("resnet20", DENSE, 1, 0.910, 1_000, {}),
    ("resnet20", SPARSE, 0, 0.896, 500, {}),
    ("resnet20", SPARSE, 1, 0.904, 520, {}),
    ("resnet20", {"prune": Prune(final_sparsity=0.9)}, 0, 0.85, 125, {}),
]
BOTH = [
    *LADDER,
    ("resnet20", SUPER, 0, 0.89, 100, {}),
    ("resnet20", {"quantize": Quantize(bits=8)}, 0, 0.901, 250, {}),
    ("resnet44", DENSE, 0, 0.92, 2_000, {}),
    ("resnet44", SUPER | {"prune": Prune(final_sparsity=0.7)}, 0, 0.91, 200, {}),
    ("resnet44", {"quantize": Quantize(budget_bytes=50_000)}, 0, 0.91, 400, {}),
]


@pytest.fixture
def written(memory_path: Path) -> Callable[..., Results]:
    """Writes runs as a sweep does, and reads them back as the report does."""

    def write(runs: list[tuple]) -> Results:
        table = Store(memory_path, *tables.schemas(ABOUT))
        for number, (model, changes, seed, test, size, more) in enumerate(runs):
            identity = {"sweep": "s", "trial": f"s-{number:04d}", "number": number}
            row = flatten(replace(pruning.base, model=model, seed=seed, **changes))
            scores = {"accuracy": test, "test_accuracy": test, "model_bytes": size, "epoch": 1}
            costs = {"s_per_epoch": 10.0, "precision_used": "bfloat16", "torch_save_bytes": 1_100}
            status = {"status": "COMPLETE"}
            table.put_trial({**identity, **row, **status, **scores, **costs, **more})
        table.close()
        return read(memory_path)

    return write


def family_table(results: Results) -> pd.DataFrame:
    table = summary.family_table(results, 0.6)
    assert table is not None
    return table


class TestPlainPruning:
    """A sweep without a second technique has the table that it always had."""

    def test_has_a_row_a_sparsity(self, written):
        table = family_table(written(LADDER))
        assert table["sparsity"].tolist() == ["dense", "60 %", "90 %"]
        assert table["kind"].tolist() == ["base", "pruned", "pruned"]
        assert table["trials"].tolist() == [2, 2, 1]
        assert table["test accuracy, %"].tolist() == [90.5, 90.0, 85.0]
        assert table["±"].tolist()[:2] == [0.71, 0.57]
        assert pd.isna(table["±"][2])
        assert table["best, %"].tolist() == [91.0, 90.4, 85.0]
        assert table["vs dense, points"].tolist() == [0.0, -0.5, -5.5]
        assert table["file bytes"].tolist() == [1000, 510, 125]
        assert table["smaller"].tolist() == [1.0, 1.96, 8.0]
        assert table["s/epoch"].tolist() == [10.0] * 3

    def test_says_nothing_of_what_is_off(self, written):
        table = family_table(written(LADDER))
        idle = {"bits", "channels", "precision", "latency ms", "faster than fp32"}
        assert idle.isdisjoint(table.columns)
        assert "reference: smaller" not in table.columns

    def test_without_a_dense_twin_there_is_nothing_to_compare_with(self, written):
        table = family_table(written(LADDER[2:]))
        assert table["vs dense, points"].isna().all()
        assert table["smaller"].isna().all()
        assert table["vs torch.save"].tolist() == [2.16, 8.8]

    def test_a_random_search_is_shown_in_bands(self, written):
        runs = [
            ("resnet20", {"prune": Prune(final_sparsity=0.30 + 0.01 * i)}, 0, 0.9, 500, {})
            for i in range(12)
        ]
        table = family_table(written(runs))
        assert table["sparsity"].tolist() == ["30–40 %", "40–50 %"]
        assert table["trials"].tolist() == [10, 2]

    def test_is_empty_before_a_trial_is_complete(self, written):
        results = written([("resnet20", DENSE, 0, 0.9, 1000, {"status": "RUNNING"})])
        assert family_table(results).empty


class TestSuperModel:
    def test_has_a_row_for_what_a_network_is(self, written):
        table = family_table(written(BOTH))
        actual = list(
            table[["model", "kind", "sparsity", "bits"]].itertuples(index=False, name=None)
        )
        assert actual == [
            ("resnet20", "base", "dense", "32"),
            ("resnet20", "pruned", "60 %", "32"),
            ("resnet20", "pruned", "90 %", "32"),
            ("resnet20", "quantized", "dense", "8"),
            ("resnet20", "super model", "60 %", "4"),
            ("resnet44", "base", "dense", "32"),
            ("resnet44", "quantized", "dense", "in 50 kB"),
            ("resnet44", "super model", "70 %", "4"),
        ]

    def test_its_file_is_compared_with_the_dense_twin_and_with_torch_save(self, written):
        row = (
            family_table(written(BOTH))
            .set_index(["model", "kind"])
            .loc[("resnet20", "super model")]
        )
        assert row["smaller"] == 10.0
        assert row["vs torch.save"] == 11.0
        assert row["vs dense, points"] == -1.5

    def test_the_references_words_stand_beside_its_own_rows_alone(self, written):
        table = family_table(written(BOTH)).set_index(["model", "kind", "sparsity"])
        said = table[["reference: accuracy", "reference: smaller"]]
        for (model, kind, band), (accuracy, smaller) in REFERENCE.items():
            key = (model, kind, f"{100 * band:g} %")
            if key in said.index:
                assert said.loc[key, "reference: accuracy"] == accuracy
                assert smaller is None or said.loc[key, "reference: smaller"] == smaller
        assert said.loc[("resnet44", "super model", "70 %"), "reference: smaller"] == 1.4
        assert (said.loc[("resnet20", "base")]["reference: accuracy"] == "").all()

    def test_channels_are_shown_where_some_were_cut(self, written):
        runs = [*LADDER, ("resnet20", DENSE, 2, 0.89, 400, {"channels": 0.503})]
        table = family_table(written(runs))
        assert table["channels"].tolist() == ["50 %", "100 %", "100 %", "100 %"]
        assert table["smaller"].tolist()[0] == 2.5  # than the one that is whole


class TestPrecision:
    @staticmethod
    def run(precision: str, seed: int, seconds: float, **changes: Any) -> tuple:
        used = {"bf16": "bfloat16", "fp32": "float32"}[precision]
        recipe = replace(pruning.base.recipe, precision=precision)
        more = {"s_per_epoch": seconds, "precision_used": used}
        return ("resnet20", {"recipe": recipe, **changes}, seed, 0.9, 1000, more)

    def test_speed_up_is_over_twins_in_fp32(self, written):
        runs = [self.run("fp32", seed, 30.0 + seed) for seed in range(3)]
        runs += [self.run("bf16", seed, 20.0 + seed) for seed in range(3)]
        table = family_table(written(runs)).set_index("precision")
        assert table.loc["bfloat16", "faster than fp32"] == 1.48  # 31 / 21
        assert pd.isna(table.loc["float32", "faster than fp32"])

    def test_what_differs_in_more_is_no_twin(self, written):
        runs = [self.run("fp32", 0, 30.0), self.run("bf16", 0, 10.0, **SPARSE)]
        assert "faster than fp32" not in family_table(written(runs)).columns

    def test_each_precision_has_its_own_dense_twin(self, written):
        runs = [self.run("fp32", 0, 30.0), self.run("bf16", 0, 10.0)]
        runs += [self.run("bf16", 0, 10.0, **SPARSE)]
        model, changes, seed, _, size, more = runs[1]
        runs[1] = (model, changes, seed, 0.8, size, more)
        table = family_table(written(runs)).set_index(["kind", "precision"])
        assert table.loc[("pruned", "bfloat16"), "vs dense, points"] == 10.0


def test_a_trial_reports_what_torch_save_would_leave(tiny):
    recipe = replace(tiny.recipe, epochs=1)
    (epoch,) = trainer.train(replace(tiny, recipe=recipe, subset=0.05))
    assert epoch.metrics["torch_save_bytes"] > 4 * epoch.metrics["parameters"]
    assert epoch.metrics["torch_save_bytes"] > epoch.metrics["model_bytes"]
