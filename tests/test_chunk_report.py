"""The table of chunks, and the shipped space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from raybench.experiment import Parallel, Pipeline, flatten, tables
from raybench.reports import page, summary
from raybench.reports.tables import pipeline as chunk_table
from raybench.results.read import Results, read
from raybench.results.store import Store
from raybench.search.overrides import Overrides
from raybench.search.space import load
from trainers import pipeline

ROOT = Path(__file__).parent.parent
ABOUT = {"family": "pipeline", "sweep": "s", "objectives": pipeline.objectives}
REFERENCE = ["reference: accuracy, %", "reference: s/batch", "reference: speed-up"]

ALONE, TWO = Pipeline(), Pipeline(stages=2)
# pipeline, workers, threads, model, status, validation and test accuracy, seconds a batch, bubble
RUNS = [
    (TWO, 1, 2, "resnet18", "COMPLETE", 0.50, 0.51, 1.2, 0.5),
    (replace(TWO, chunks=4), 1, 2, "resnet18", "COMPLETE", 0.60, 0.59, 0.8, 0.25),
    (replace(TWO, chunks=4), 1, 2, "resnet18", "COMPLETE", 0.58, 0.61, 0.7, 0.21),
    (replace(TWO, chunks=4), 1, 2, "resnet18", "COMPLETE", 0.59, 0.63, 0.75, 0.22),
    (replace(TWO, chunks=4, bits=4), 1, 2, "resnet18", "COMPLETE", 0.55, 0.56, 0.9, 0.3),
    (replace(TWO, bits=4), 1, 2, "resnet18", "COMPLETE", 0.55, 0.5, 1.35, 0.5),
    (ALONE, 2, 1, "resnet18", "COMPLETE", 0.61, 0.62, 0.66, None),
    (ALONE, 1, 2, "resnet18", "COMPLETE", 0.62, 0.60, 0.60, None),
    (ALONE, 1, 1, "resnet18", "COMPLETE", 0.62, 0.61, 1.19, None),
    (replace(TWO, chunks=2), 1, 1, "vgg11", "COMPLETE", 0.4, 0.41, 0.3, 0.34),
    (replace(TWO, chunks=8), 1, 1, "vgg11", "PRUNED", 0.9, None, 0.01, 0.1),
    (replace(TWO, chunks=8), 1, 1, "vgg11", "FAILED", None, None, None, None),
]


@pytest.fixture
def written(memory_path: Path) -> Callable[..., Results]:
    """Writes runs as a sweep does, and reads them back as the report does."""

    def write(runs: list[tuple] = RUNS) -> Results:
        store = Store(memory_path, *tables.schemas(ABOUT))
        for number, run in enumerate(runs):
            parts, workers, threads, model, status, accuracy, test, seconds, bubble = run
            identity = {"sweep": "s", "trial": f"s-{number:04d}", "number": number}
            last = {"epoch": 1, "accuracy": accuracy, "s_per_batch": seconds, "bubble": bubble}
            last["precision_used"] = "bfloat16"
            if parts.stages > 1:
                last |= {
                    "bubble_predicted": 1 / (parts.chunks + 1),
                    "imbalance": 1 + number / 1000,
                    "wire_bytes_per_step": 8_388_608 if parts.bits == 32 else 1_146_880,
                    "cuts": "5",
                }
            store.put_epoch({**identity, **last})
            described = replace(
                pipeline.base, model=model, pipeline=parts, parallel=Parallel(workers=workers)
            )
            row = {**identity, **flatten(described), "threads": threads, "status": status}
            store.put_trial({**row, **last, "test_accuracy": test})
        store.close()
        return read(memory_path)

    return write


@pytest.fixture
def table(written) -> pd.DataFrame:
    actual = summary.family_table(written(), 0.75)
    assert actual is not None
    return actual


def row(table: pd.DataFrame, way: str, chunks: int = 1) -> pd.Series:
    (actual,) = table[(table["runs as"] == way) & (table["chunks"] == chunks)].to_dict("records")
    return actual


class TestTable:
    def test_has_a_row_a_way_and_number_of_chunks(self, table):
        actual = list(table[["model", "cores", "runs as", "chunks"]].itertuples(index=False))
        assert [tuple(each) for each in actual] == [
            ("resnet18", 1, "1 thread", 1),
            ("resnet18", 2, "2 threads", 1),
            ("resnet18", 2, "2 workers, ddp", 1),
            ("resnet18", 2, "2 stages", 1),
            ("resnet18", 2, "2 stages, 4 bits", 1),
            ("resnet18", 2, "2 stages, gpipe", 4),
            ("resnet18", 2, "2 stages, gpipe, 4 bits", 4),
            ("vgg11", 2, "2 stages, gpipe", 2),  # complete trials alone
        ]

    def test_accuracies_and_medians(self, table):
        actual = row(table, "2 stages, gpipe", 4)
        assert actual["trials"] == 3
        assert actual["test accuracy, %"] == 61.0
        assert actual["±"] == 2.0
        assert actual["best, %"] == 59.0  # chosen by the validation split
        assert actual["s/batch"] == 0.75
        assert actual["bubble predicted %"] == 20.0
        assert actual["bubble %"] == 22.0
        assert actual["imbalance"] == 1.002
        assert actual["MB/step"] == 8.389
        assert actual["cuts"] == "5"

    def test_speed_up_is_over_the_same_way_with_one_chunk(self, table):
        assert row(table, "2 stages, gpipe", 4)["speed-up"] == 1.6  # 1.2 / 0.75
        assert row(table, "2 stages, gpipe, 4 bits", 4)["speed-up"] == 1.5  # 1.35 / 0.9
        for way in ("2 stages", "2 threads", "2 workers, ddp"):
            assert math.isnan(row(table, way)["speed-up"])
        assert math.isnan(row(table, "2 stages, gpipe", 2)["speed-up"])  # VGG-11 has no chunk 1

    def test_stages_are_compared_with_the_fastest_other_way_on_as_many_cores(self, table):
        assert row(table, "2 stages, gpipe", 4)["to others"] == 0.8  # 0.60 / 0.75, of two threads
        assert row(table, "2 stages")["to others"] == 0.5
        for way in ("1 thread", "2 threads", "2 workers, ddp"):
            assert math.isnan(row(table, way)["to others"])
        assert math.isnan(row(table, "2 stages, gpipe", 2)["to others"])

    def test_other_precisions_and_batches_are_not_compared(self, written):
        results = written(RUNS[1:2] + RUNS[7:8])
        for column, value in (("precision_used", "float32"), ("recipe.batch", 64)):
            trials = results.trials.copy()
            trials.loc[1, column] = value
            actual = chunk_table.table(trials, results.epochs, 0.75)
            assert len(actual) == 2
            assert actual["to others"].isna().all()
        assert chunk_table.table(results.trials, results.epochs, 0.75)["to others"].max() == 0.75

    def test_figures_of_the_reference_stand_beside_stages_at_32_bits_alone(self, table):
        assert list(table.columns)[-len(REFERENCE) :] == REFERENCE
        beside = table.set_index(["runs as", "chunks"])[REFERENCE]
        assert beside.loc[("2 stages", 1)].tolist() == [92.87, 0.37, 1.0]
        assert beside.loc[("2 stages, gpipe", 4)].tolist() == [92.78, 0.25, 1.48]
        assert beside.loc[("2 stages, gpipe", 2)].tolist() == [90.03, 0.158, 1.02]
        for way in ("1 thread", "2 threads", "2 workers, ddp", "2 stages, 4 bits"):
            assert beside.loc[(way, 1)].isna().all()

    def test_what_is_not_at_its_default_is_said(self, written):
        run = (1, 2, "resnet18", "COMPLETE", 0.5, 0.5, 1.0, 0.3)
        said = {
            "2 stages, 1f1b": Pipeline(stages=2, chunks=2, schedule="1f1b"),
            "2 stages, shm": Pipeline(stages=2, transport="shm", schedule="1f1b"),
            "3 stages, gpipe, link of 12.5 MB/s": Pipeline(stages=3, chunks=2, link_mb_s=12.5),
            "2 stages, gpipe, batch norm deferred": Pipeline(
                stages=2, chunks=2, batch_norm="deferred"
            ),
            "2 threads, batch norm per_chunk": Pipeline(chunks=4, batch_norm="per_chunk"),
        }
        results = written([(parts, *run) for parts in said.values()])
        actual = summary.family_table(results, 0.75)
        assert set(actual["runs as"]) == set(said)

    @pytest.mark.slow
    @pytest.mark.parametrize("runs", [[], RUNS[10:], RUNS[:1], RUNS[6:7]])
    def test_sweeps_of_few_trials(self, written, runs):
        results = written(runs)
        complete = any(run[4] == "COMPLETE" for run in runs)
        text = summary.summary(results, 0.75)
        assert ("pipeline: the family's table" in text) == complete
        assert "<h2>pipeline</h2>" in page.as_html(results, 0.75)


class TestSpace:
    @pytest.mark.slow
    def test_the_shipped_space_holds_every_setting(self):
        space = load(ROOT / "search_spaces" / "chunks.py", Overrides(epochs=1))
        assert space.family == "pipeline"
        assert space.objectives == pipeline.objectives
        actual = [example.pipeline for example in space.examples]
        assert {each.stages for each in actual} == {1, 2}
        assert {each.chunks for each in actual} == {1, 2, 4, 8}
        assert {each.bits for each in actual} == {32, 16, 8, 4}
        assert {each.schedule for each in actual} == {"gpipe", "1f1b", "zero_bubble"}
        assert {each.model for each in space.examples} == {"mobilenet_v2", "resnet18", "vgg11"}
        # What would change nothing is not varied: such trials would be one and the same.
        assert all(each.bits == 32 for each in actual if each.stages == 1)
        assert all(each.schedule == "gpipe" for each in actual if each.chunks == 1)

    def test_the_reference_has_a_figure_for_each_of_its_models_and_chunks(self):
        assert len(chunk_table.REFERENCE) == 12
        for model in ("mobilenet_v2", "resnet18", "vgg11"):
            seconds = [chunk_table.REFERENCE[model, chunks][1] for chunks in (1, 2, 4, 8)]
            assert seconds == sorted(seconds, reverse=True)
