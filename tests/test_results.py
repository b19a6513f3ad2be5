"""The tables: one schema, rows that survive anything, files that everybody reads."""

from __future__ import annotations

import errno
import itertools
import math
import os
from dataclasses import replace
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybench import family
from raybench.experiment import columns, flatten
from raybench.results import schema, store
from raybench.results.front import front, hypervolume, ranks
from raybench.results.read import read
from raybench.results.store import Row, Store
from raybench.techniques.prune import Prune
from trainers.pruning import base

ABOUT = {"family": "pruning", "sweep": "s", "objectives": {"accuracy": "max", "loss": "min"}}
METRICS = family.metrics("pruning")


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    return memory_path


def schemas() -> tuple[pa.Schema, pa.Schema]:
    return schema.trial_schema(METRICS, ABOUT), schema.epoch_schema(METRICS, ABOUT)


def opened(folder: Path) -> Store:
    return Store(folder, *schemas())


def trial_row(number: int, **values: object) -> Row:
    identity = {"sweep": "s", "trial": f"s-{number:04d}", "number": number}
    return {**identity, "status": "RUNNING", **flatten(base), **values}


def epoch_row(number: int, epoch: int, **values: object) -> Row:
    return {"sweep": "s", "trial": f"s-{number:04d}", "number": number, "epoch": epoch, **values}


def trials_on_disk(folder: Path) -> dict[int, Row]:
    table = pq.read_table(folder / "trials").to_pylist()
    assert len({row["number"] for row in table}) == len(table)
    return {row["number"]: row for row in table}


def epochs_on_disk(folder: Path) -> list[tuple[int, int]]:
    frame = pd.read_parquet(folder / "epochs")
    return sorted(zip(frame["number"], frame["epoch"], strict=True))


def contents(folder: Path) -> dict[str, bytes]:
    """The tables' files. Opening anew may rewrite nothing of a sweep that it refuses."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in found}


# --- The schema ---------------------------------------------------------------------------------


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
        assert read_back[0].equals(read_back[1], check_metadata=True)
        assert read_back[0].equals(read_back[2], check_metadata=True)

    def test_holds_experiment_metrics_and_provenance(self):
        trials, epochs = schemas()
        assert set(columns()) | set(METRICS) | set(schema.PROVENANCE) < set(trials.names)
        assert set(METRICS) < set(epochs.names)
        assert trials.field("prune.final_sparsity").type == pa.float64()
        assert trials.field("recipe.flip").type == pa.bool_()
        assert trials.field("model_bytes").type == pa.int64()
        assert len(set(trials.names)) == len(trials.names)

    def test_says_what_the_sweep_was_about(self):
        assert schema.about(schemas()[0]) == {"schema": schema.VERSION, **ABOUT}
        with pytest.raises(ValueError, match="not written by raybench"):
            schema.about(pa.schema([("number", pa.int64())]))


# --- The writer ---------------------------------------------------------------------------------


class TestStore:
    def test_rows_survive_without_a_close(self, tmp_path):
        first = opened(tmp_path)
        first.put_trial(trial_row(0))
        first.put_epoch(epoch_row(0, 1, loss=0.5))
        first.put_epoch(epoch_row(0, 2, loss=0.25))
        first.put_trial(trial_row(0, status="COMPLETE", loss=0.25))
        first.put_trial(trial_row(1))
        assert trials_on_disk(tmp_path) == {}  # not in a snapshot yet
        del first
        second = opened(tmp_path)
        assert {n: row["status"] for n, row in second.trials.items()} == {
            0: "COMPLETE",
            1: "RUNNING",
        }
        assert [(row["number"], row["loss"]) for row in second.epoch_rows()] == [
            (0, 0.5),
            (0, 0.25),
        ]
        assert trials_on_disk(tmp_path)[0]["loss"] == 0.25
        assert epochs_on_disk(tmp_path) == [(0, 1), (0, 2)]

    def test_the_last_word_on_a_trial_counts(self, tmp_path):
        first = opened(tmp_path)
        first.put_trial(trial_row(0, loss=3.0))
        first.snapshot()
        first.put_trial(trial_row(0, loss=2.0))
        assert trials_on_disk(tmp_path)[0]["loss"] == 3.0
        second = opened(tmp_path)
        assert second.trials[0]["loss"] == 2.0
        assert trials_on_disk(tmp_path)[0]["loss"] == 2.0

    @pytest.mark.parametrize("cut", [1, 5, 40])
    def test_a_torn_last_line_is_cut_off(self, tmp_path, cut):
        first = opened(tmp_path)
        first.put_trial(trial_row(0))
        first.put_trial(trial_row(1))
        tail = tmp_path / ".state" / "tail.jsonl"
        tail.write_bytes(tail.read_bytes()[:-cut])
        second = opened(tmp_path)
        assert list(second.trials) == [0]
        second.put_trial(trial_row(2))
        assert sorted(opened(tmp_path).trials) == [0, 2]

    def test_repair_keeps_every_whole_line(self, tmp_path):
        path = tmp_path / "lines"
        for torn, whole in {b"": b"", b"a": b"", b"a\nb": b"a\n", b"a\nb\n": b"a\nb\n"}.items():
            path.write_bytes(torn)
            store.repair_tail(path)
            assert path.read_bytes() == whole

    def test_a_repeated_epoch_stands_once(self, tmp_path):
        """A trial that goes on from an older checkpoint reports epochs again."""
        table = opened(tmp_path)
        for epoch, loss in [(1, 0.9), (2, 0.8), (2, 0.7)]:
            table.put_epoch(epoch_row(0, epoch, loss=loss))
        table.close()
        assert epochs_on_disk(tmp_path) == [(0, 1), (0, 2)]

    def test_no_number_becomes_null(self, tmp_path):
        table = opened(tmp_path)
        table.put_trial(trial_row(0, loss=math.nan, accuracy=math.inf, validation_loss=0.5))
        table.put_epoch(epoch_row(0, 1, loss=-math.inf))
        table.close()
        row = trials_on_disk(tmp_path)[0]
        assert (row["loss"], row["accuracy"], row["validation_loss"]) == (None, None, 0.5)
        assert pq.read_table(tmp_path / "epochs").to_pylist()[0]["loss"] is None

    def test_a_misspelt_column_is_an_error(self, tmp_path):
        table = opened(tmp_path)
        table.put_trial(trial_row(0, acuracy=0.5))
        with pytest.raises(AssertionError, match="acuracy"):
            table.snapshot()

    def test_a_snapshot_empties_the_tail_and_is_due_only_now_and_then(self, tmp_path):
        table = opened(tmp_path)
        tail = tmp_path / ".state" / "tail.jsonl"
        table.put_trial(trial_row(0))
        table.snapshot_if_due()  # opening has just written one
        assert tail.read_text().count("\n") == 1
        table._next_snapshot = 0.0
        table.snapshot_if_due()
        assert tail.read_text() == ""
        assert list(trials_on_disk(tmp_path)) == [0]

    def test_a_reader_keeps_the_table_that_it_has_opened(self, tmp_path):
        """A snapshot is another file in the old one's place."""
        table = opened(tmp_path)
        with (tmp_path / "trials/trials.parquet").open("rb") as reader:
            before = reader.read()
            table.put_trial(trial_row(0))
            table.snapshot()
            reader.seek(0)
            assert reader.read() == before
        assert len(trials_on_disk(tmp_path)) == 1

    def test_nothing_else_lies_in_the_two_folders(self, tmp_path):
        table = opened(tmp_path)
        table.put_trial(trial_row(0))
        table.close()
        assert [path.name for path in (tmp_path / "trials").iterdir()] == ["trials.parquet"]
        assert [path.name for path in (tmp_path / "epochs").iterdir()] == ["epochs-00000.parquet"]


class TestParts:
    @pytest.fixture(autouse=True)
    def _small_parts(self, monkeypatch):
        monkeypatch.setattr(store, "PART_ROWS", 4)

    def written(self, folder: Path, trials: int) -> list[tuple[int, int]]:
        table, keys = opened(folder), []
        for number in range(trials):
            for epoch in (1, 2, 3):
                table.put_epoch(epoch_row(number, epoch))
                keys.append((number, epoch))
            table.snapshot()
        return keys

    def test_hold_every_epoch_once(self, tmp_path):
        keys = self.written(tmp_path, 7)
        assert len(list((tmp_path / "epochs").iterdir())) == 4
        assert epochs_on_disk(tmp_path) == keys
        again = opened(tmp_path)
        assert [(row["number"], row["epoch"]) for row in again.epoch_rows()] == keys
        again.put_epoch(epoch_row(0, 1))  # in a sealed part
        again.put_epoch(epoch_row(7, 1))
        again.close()
        assert epochs_on_disk(tmp_path) == [*keys, (7, 1)]

    def test_that_are_full_are_never_written_again(self, tmp_path):
        self.written(tmp_path, 4)
        full = tmp_path / "epochs" / "epochs-00000.parquet"
        before = (full.stat().st_ino, full.stat().st_mtime_ns)
        again = opened(tmp_path)
        again.put_epoch(epoch_row(9, 1))
        again.close()
        assert (full.stat().st_ino, full.stat().st_mtime_ns) == before

    def test_survive_without_a_close(self, tmp_path):
        keys = self.written(tmp_path, 3)
        left = opened(tmp_path)
        left.put_epoch(epoch_row(3, 1))
        del left
        assert [(r["number"], r["epoch"]) for r in opened(tmp_path).epoch_rows()] == [*keys, (3, 1)]


class TestRefusals:
    def test_an_older_schema_is_refused_and_left_alone(self, tmp_path, monkeypatch):
        monkeypatch.setattr(schema, "VERSION", 0)
        old = opened(tmp_path)
        old.put_trial(trial_row(0))
        old.close()
        monkeypatch.undo()
        before = contents(tmp_path)
        with pytest.raises(ValueError, match=r"older or other schema \(version 0.*--name"):
            opened(tmp_path)
        assert contents(tmp_path) == before

    def test_other_columns_are_refused_and_left_alone(self, tmp_path):
        fewer = {name: kind for name, kind in METRICS.items() if name != "sparsity"}
        Store(
            tmp_path, schema.trial_schema(fewer, ABOUT), schema.epoch_schema(fewer, ABOUT)
        ).close()
        before = contents(tmp_path)
        with pytest.raises(ValueError, match="older or other schema"):
            opened(tmp_path)
        assert contents(tmp_path) == before

    @pytest.mark.parametrize("where", ["trials", "epochs"])
    def test_a_foreign_file_is_refused_by_name(self, tmp_path, where):
        opened(tmp_path).close()
        (tmp_path / where / "notes.txt").write_text("mine")
        with pytest.raises(ValueError, match=rf"{where}/notes\.txt does not belong here"):
            opened(tmp_path)
        (tmp_path / where / "notes.txt").unlink()
        pd.DataFrame({"number": [1]}).to_parquet(tmp_path / where / "other.parquet")
        with pytest.raises(ValueError, match=rf"{where}/other\.parquet does not belong here"):
            opened(tmp_path)


class TestFullDisk:
    @pytest.fixture
    def full(self, monkeypatch):
        def fill() -> None:
            def fail(_: int) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(os, "fsync", fail)

        return fill

    def test_a_snapshot_raises_and_leaves_the_last_one(self, tmp_path, full):
        table = opened(tmp_path)
        table.put_trial(trial_row(0, loss=0.5))
        table.snapshot()
        table.put_trial(trial_row(1))
        full()
        with pytest.raises(OSError, match="No space left"):
            table.snapshot()
        assert {n: row["loss"] for n, row in trials_on_disk(tmp_path).items()} == {0: 0.5}
        assert len(read(tmp_path).trials) == 1

    def test_a_row_raises_and_does_not_pass_for_safe(self, tmp_path, full, monkeypatch):
        table = opened(tmp_path)
        table.put_trial(trial_row(0))
        full()
        with pytest.raises(OSError, match="No space left"):
            table.put_trial(trial_row(1))
        monkeypatch.undo()  # there is room again
        again = opened(tmp_path)
        assert 0 in again.trials
        assert 0 in trials_on_disk(tmp_path)


# --- The readers --------------------------------------------------------------------------------


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
        with pytest.raises(ValueError, match=f"{tmp_path} holds a broken Parquet file"):
            read(tmp_path)


# --- The front ----------------------------------------------------------------------------------


def slow_ranks(values: list[list[float]], directions: list[str]) -> list[int]:
    """Peels the front off, point by point."""

    def dominates(one: list[float], other: list[float]) -> bool:
        pairs = [
            (a, b) if way == "max" else (-a, -b)
            for a, b, way in zip(one, other, directions, strict=True)
        ]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    found, left, level = {}, set(range(len(values))), 0
    while left:
        best = {i for i in left if not any(dominates(values[j], values[i]) for j in left)}
        found |= dict.fromkeys(best, level)
        left -= best
        level += 1
    return [found[i] for i in range(len(values))]


small_values = st.integers(0, 4).map(float)  # few values, so that many are equal
points = st.integers(1, 3).flatmap(
    lambda dims: st.tuples(
        st.lists(st.lists(small_values, min_size=dims, max_size=dims), max_size=12),
        st.lists(st.sampled_from(["max", "min"]), min_size=dims, max_size=dims),
    )
)


def slow_hypervolume(costs: list[list[float]], reference: list[float]) -> int:
    """Unit cells below the reference that some point dominates."""
    cells = itertools.product(*(range(int(end)) for end in reference))
    return sum(
        any(all(p <= c for p, c in zip(point, cell, strict=True)) for point in costs)
        for cell in cells
    )


class TestHypervolume:
    @given(
        st.integers(1, 3).flatmap(
            lambda dims: st.tuples(
                st.lists(st.lists(small_values, min_size=dims, max_size=dims), max_size=8),
                st.lists(st.integers(0, 4).map(float), min_size=dims, max_size=dims),
            )
        )
    )
    def test_counts_what_is_dominated(self, case):
        costs, reference = case
        assert hypervolume(costs, reference) == slow_hypervolume(costs, reference)


class TestFront:
    @given(points)
    def test_ranks_equal_a_slow_reference(self, case):
        values, directions = case
        assert ranks(values, directions) == slow_ranks(values, directions)

    @given(
        st.lists(
            st.tuples(
                small_values | st.none(),
                small_values,
                st.sampled_from(["COMPLETE", "PRUNED", "FAILED", "RUNNING"]),
            ),
            max_size=12,
        )
    )
    def test_holds_the_undominated_complete_trials(self, rows):
        frame = pd.DataFrame(rows, columns=["accuracy", "loss", "status"])
        frame["accuracy"] = frame["accuracy"].astype("Float64")
        found = front(frame, ABOUT["objectives"])
        eligible = [
            i for i, (a, _, status) in enumerate(rows) if status == "COMPLETE" and a is not None
        ]
        order = slow_ranks([list(rows[i][:2]) for i in eligible], ["max", "min"])
        assert sorted(found.index) == [i for i, r in zip(eligible, order, strict=True) if r == 0]
        assert found["accuracy"].tolist() == sorted(found["accuracy"], reverse=True)

    def test_never_holds_a_stopped_or_failed_trial(self):
        frame = pd.DataFrame(
            {
                "status": ["PRUNED", "FAILED", "RUNNING", "COMPLETE"],
                "accuracy": [0.9, 0.9, 0.9, 0.1],
                "loss": [0.0, 0.0, 0.0, 1.0],
            }
        )
        assert front(frame, ABOUT["objectives"])["accuracy"].tolist() == [0.1]
