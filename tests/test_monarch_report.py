"""The table of dense, Monarch and low-rank models, and the commands on the way to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from raybench import report
from raybench.experiment import flatten, tables
from raybench.models import build
from raybench.reports import page, summary
from raybench.results.read import Results, read
from raybench.results.store import Store
from raybench.search.overrides import Overrides
from raybench.search.space import load
from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from trainers import monarch

ROOT = Path(__file__).parent.parent


ABOUT = {"family": "monarch", "sweep": "s", "objectives": monarch.objectives}


REFERENCE = [f"reference: {name}" for name in ("accuracy, %", "speed-up", "parameters", "FLOPs")]


SMALL, BASE, MIXER = "vit_small_patch16_224", "vit_base_patch16_224", "mixer_b16_224"


MONARCH, LOW = {"monarch": Monarch()}, {"low_rank": LowRank(blocks=8, layers="attention")}


LATER = {"monarch": Monarch(blocks=2, mode="sparse_to_dense", switch_at=0.75)}


FACTORS = "12 x (4 of 96x96 · 4 of 288x96)"


# model, techniques, status, test accuracy, seconds an epoch, factors
RUNS = [
    (SMALL, {}, "COMPLETE", 0.70, 10.0, ""),
    (SMALL, {}, "COMPLETE", 0.74, 20.0, ""),
    (SMALL, {}, "COMPLETE", 0.72, 12.0, ""),
    (SMALL, MONARCH, "COMPLETE", 0.75, 5.0, FACTORS),
    (SMALL, MONARCH, "COMPLETE", 0.79, 7.0, FACTORS),
    (SMALL, LOW, "COMPLETE", 0.60, 4.0, ""),
    (SMALL, LATER, "COMPLETE", 0.715, 24.0, ""),
    (BASE, MONARCH, "COMPLETE", 0.50, 40.0, FACTORS),
    (MIXER, {}, "COMPLETE", 0.55, 30.0, ""),
    (BASE, {}, "PRUNED", None, 80.0, ""),
    (SMALL, MONARCH, "FAILED", None, None, None),
]


@pytest.fixture
def written(memory_path: Path) -> Callable[..., Results]:
    """Writes runs as a sweep does, and reads them back as the report does."""

    def write(runs: list[tuple] = RUNS) -> Results:
        table = Store(memory_path, *tables.schemas(ABOUT))
        for number, (model, techniques, status, test, seconds, factors) in enumerate(runs):
            identity = {"sweep": "s", "trial": f"s-{number:04d}", "number": number}
            row = flatten(replace(monarch.base, model=model, seed=number, **techniques))
            last = {"epoch": 1, "accuracy": 0.5, "s_per_epoch": seconds, "factors": factors}
            if seconds is not None:
                table.put_epoch({**identity, **last})
            costs = {"parameters": 19_550_000 + number, "flops": 9_876_000_000}
            scores = {"test_accuracy": test, **costs} if status == "COMPLETE" else {}
            table.put_trial({**identity, **row, "status": status, **last, **scores})
        table.close()
        return read(memory_path)

    return write


def family_table(results: Results) -> pd.DataFrame:
    """By model and layers."""
    table = summary.family_table(results, 0.6)
    assert table is not None
    return table.set_index(["model", "layers"])


class TestTable:
    def test_has_a_row_a_model_and_kind_of_layers(self, written):
        table = family_table(written())
        assert table["trials"].to_dict() == {  # complete ones alone
            (MIXER, "dense"): 1,
            (BASE, "monarch 4 both"): 1,
            (SMALL, "dense"): 3,
            (SMALL, "low-rank 8 attention"): 1,
            (SMALL, "monarch 2 both sparse_to_dense 0.75"): 1,
            (SMALL, "monarch 4 both"): 2,
        }

    def test_test_accuracy_is_a_mean_and_stands_beside_the_dense_twins(self, written):
        table = family_table(written()).loc[SMALL]
        assert table["test accuracy, %"].to_dict() == {
            "dense": 72.0,
            "low-rank 8 attention": 60.0,
            "monarch 2 both sparse_to_dense 0.75": 71.5,
            "monarch 4 both": 77.0,
        }
        assert table["vs dense, points"].tolist() == [0.0, -12.0, -0.5, 5.0]
        assert table.loc["dense", "±"] == 2.0
        assert table.loc["monarch 4 both", "±"] == 2.83
        assert table["±"].isna().tolist() == [False, True, True, False]

    def test_speed_up_is_of_medians_over_the_dense_twin(self, written):
        table = family_table(written()).loc[SMALL]
        assert table["s/epoch"].tolist() == [12.0, 4.0, 24.0, 6.0]
        assert table["speed-up"].tolist() == [1.0, 3.0, 0.5, 2.0]

    def test_without_a_dense_twin_there_is_nothing_to_compare_with(self, written):
        """The dense ViT-B was stopped early: it is no twin, and ViT-S's is none either."""
        table = family_table(written())
        lonely = table.loc[(BASE, "monarch 4 both")]
        assert pd.isna(lonely["speed-up"])
        assert pd.isna(lonely["vs dense, points"])
        assert lonely["test accuracy, %"] == 50.0
        assert table.loc[(MIXER, "dense"), "speed-up"] == 1.0

    def test_flops_are_multiply_adds(self, written):
        table = family_table(written())
        assert set(table["parameters"]) == {"19.6M"}
        assert set(table["FLOPs"]) == {"4.94G"}

    def test_factors_are_told_where_there_are_some(self, written):
        table = family_table(written())["factors"]
        told = {key: value for key, value in table.items() if not pd.isna(value)}
        assert told == dict.fromkeys([(BASE, "monarch 4 both"), (SMALL, "monarch 4 both")], FACTORS)

    def test_figures_of_the_reference_stand_beside_its_own_rows_alone(self, written):
        table = family_table(written())
        assert list(table.columns)[-len(REFERENCE) :] == REFERENCE
        beside = table[REFERENCE]
        assert beside.loc[(SMALL, "monarch 4 both")].tolist() == [78.16, 1.87, "19.6M", "3.9G"]
        assert beside.loc[(BASE, "monarch 4 both"), "reference: accuracy, %"] == 74.69
        assert beside.loc[(MIXER, "dense"), "reference: parameters"] == "59.9M"
        assert beside.loc[(SMALL, "dense"), "reference: FLOPs"] == "9.9G"
        assert pd.isna(beside.loc[(SMALL, "dense"), "reference: speed-up"])
        assert beside.loc[(SMALL, "low-rank 8 attention")].isna().all()

    def test_a_model_of_ones_own_has_no_reference(self, written):
        table = family_table(written([("vit192x4", *RUNS[3][1:]), ("vit192x4", *RUNS[0][1:])]))
        assert table[REFERENCE].isna().all(axis=None)
        assert table["speed-up"].tolist() == [1.0, 2.0]

    def test_no_blocks_are_dense_layers(self, written):
        off = [{"monarch": Monarch(blocks=0)}, {"low_rank": LowRank(blocks=0)}]
        runs = [(SMALL, techniques, *RUNS[0][2:]) for techniques in (*off, {})]
        table = family_table(written(runs))
        assert table.index.tolist() == [(SMALL, "dense")]
        assert table["trials"].tolist() == [3]

    @pytest.mark.parametrize("runs", [[], RUNS[9:], RUNS[:1], RUNS[3:4], RUNS[5:6]])
    def test_sweeps_of_few_trials(self, written, runs):
        results = written(runs)
        complete = any(run[2] == "COMPLETE" for run in runs)
        assert len(family_table(results) if complete else []) == complete
        text = summary.summary(results, 0.6)
        assert ("the family's table" in text) == complete
        assert "Pareto front" in text
        assert "<h2>monarch</h2>" in page.as_html(results, 0.6)


class TestReportCommand:
    def test_prints_the_table_and_writes_the_page(self, written, memory_path, capsys):
        written()
        page = memory_path / "page.html"
        assert (
            report.run(
                report.Report(folders=(str(memory_path),), threshold=0.1, wide=True, html=page)
            )
            == 0
        )
        printed = capsys.readouterr()
        assert printed.err == ""
        assert "11 trials, 9 complete" in printed.out
        assert "monarch: the family's table" in printed.out
        for expected in ("low-rank 8 attention", "sparse_to_dense 0.75", "78.16", "speed-up"):
            assert expected in printed.out
        assert "<td class=t>monarch 4 both<" in page.read_text()
        assert FACTORS in page.read_text()


class TestSpace:
    @pytest.fixture(scope="class")
    @classmethod
    def space(cls):
        return load(ROOT / "search_spaces" / "monarch.py", Overrides(epochs=1))

    def test_the_shipped_space_holds_every_kind_and_mode(self, space):
        assert space.family == "monarch"
        assert space.objectives == monarch.objectives
        both = [(example.monarch, example.low_rank) for example in space.examples]
        assert (None, None) in both
        assert all(None in pair for pair in both)
        low_ranks = [low for _, low in both if low]
        monarchs = [m for m, _ in both if m]
        modes = {"from_scratch", "dense_to_sparse", "sparse_to_dense"}
        assert {m.mode for m in monarchs} == modes
        for found in (monarchs, low_ranks):
            assert {technique.blocks for technique in found} == {2, 4, 8}
            assert {technique.layers for technique in found} == {
                *("attention", "feed_forward", "both")
            }
        shares = {m.switch_at for m in monarchs if m.mode != "from_scratch"}
        assert len(shares) > 5
        assert all(0.2 <= share <= 0.9 for share in shares)
        assert {example.recipe.epochs for example in space.examples} == {1}

    def test_its_blocks_divide_its_models_layers(self, space):
        (name,) = {example.model for example in space.examples}
        model = build(name, classes=10, image_size=32)
        tried = {(e.monarch.blocks, e.monarch.layers) for e in space.examples if e.monarch}
        assert len(tried) == 9
        for blocks, layers in tried:  # it looks at the sizes alone
            Monarch(blocks=blocks, layers=layers, mode="dense_to_sparse").reshape(model)
        with pytest.raises(ValueError, match="5 blocks do not divide"):
            Monarch(blocks=5, mode="dense_to_sparse").reshape(model)
