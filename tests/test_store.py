"""The writer of the results: rows that survive anything, and what it refuses."""

from __future__ import annotations

import errno
import math
import os
import re
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from table_rows import epoch_row, epochs_on_disk, opened, schemas, trial_row, trials_on_disk
from table_rows import tmp_path as tmp_path

from raybench.results import log, schema
from raybench.results.read import read
from raybench.results.store import Store


def contents(folder: Path) -> dict[str, bytes]:
    """The tables' files. Opening anew may rewrite nothing of a sweep that it refuses."""
    actual = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in actual}


def log_of(folder: Path) -> Path:
    return folder / ".state" / "log"


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
        assert trials_on_disk(tmp_path)[0]["loss"] == 0.25
        assert epochs_on_disk(tmp_path) == [(0, 1), (0, 2)]
        assert second.remarks == []

    def test_columns_are_set_one_by_one(self, tmp_path):
        first = opened(tmp_path)
        first.put_trial(trial_row(0, loss=3.0))
        first.snapshot()
        first.put_trial({"number": 0, "cpu": "a processor"})
        first.put_epoch(epoch_row(0, 1, loss=2.0, accuracy=0.5))
        first.put_epoch(epoch_row(0, 2, loss=1.0, accuracy=None))
        assert trials_on_disk(tmp_path)[0]["loss"] == 3.0
        for table in (first, opened(tmp_path)):
            row = table.trials[0]
            assert (row["loss"], row["cpu"], row["accuracy"]) == (1.0, "a processor", None)
        assert trials_on_disk(tmp_path)[0]["loss"] == 1.0

    def test_what_has_ended_changes_no_more(self, tmp_path):
        table = opened(tmp_path)
        table.put_trial(trial_row(0, status="COMPLETE", loss=1.0))
        before = log_of(tmp_path).read_bytes()
        for _ in range(2):
            with pytest.raises(ValueError, match="trial 0 has ended"):
                table.put_trial({"number": 0, "loss": 2.0})
            with pytest.raises(ValueError, match="trial 0 has ended"):
                table.put_epoch(epoch_row(0, 1))
            table.snapshot()
        assert log_of(tmp_path).read_bytes() == before
        assert trials_on_disk(tmp_path)[0]["loss"] == 1.0

    @pytest.mark.parametrize("end", [b"", b"\x8a"])
    def test_a_line_that_lacks_its_end_alone_is_kept(self, tmp_path, end):
        first = opened(tmp_path)
        first.put_trial(trial_row(0))
        first.put_trial(trial_row(1))
        log_of(tmp_path).write_bytes(log_of(tmp_path).read_bytes()[:-1] + end)
        second = opened(tmp_path)
        assert list(second.trials) == [0, 1]
        second.put_trial(trial_row(2))
        assert sorted(opened(tmp_path).trials) == [0, 1, 2]

    @pytest.mark.parametrize("cut", [2, 5, 40])
    def test_a_torn_last_line_is_cut_off(self, tmp_path, cut):
        first = opened(tmp_path)
        first.put_trial(trial_row(0))
        first.put_trial(trial_row(1))
        log_of(tmp_path).write_bytes(log_of(tmp_path).read_bytes()[:-cut])
        second = opened(tmp_path)
        assert list(second.trials) == [0]
        assert second.remarks == []
        second.put_trial(trial_row(2))
        assert sorted(opened(tmp_path).trials) == [0, 2]

    def test_a_cut_keeps_every_whole_line(self, tmp_path):
        path = tmp_path / "lines"
        long = b"x" * 70_000
        for torn, whole in {
            b"": b"",
            b"a": b"",
            b"a\nb": b"a\n",
            b"a\nb\n": b"a\nb\n",
            long + b"\n" + long: long + b"\n",
            long + long: b"",
        }.items():
            path.write_bytes(torn)
            log.cut_torn_end(path)
            assert path.read_bytes() == whole

    def test_a_repeated_epoch_stands_once_with_what_was_said_last(self, tmp_path):
        """A trial that goes on from an older checkpoint reports epochs again."""
        table = opened(tmp_path)
        for epoch, loss in [(1, 0.9), (2, 0.8), (2, 0.7)]:
            table.put_epoch(epoch_row(0, epoch, loss=loss))
            table.snapshot()
        table.close()
        assert epochs_on_disk(tmp_path) == [(0, 1), (0, 2)]
        assert pq.read_table(tmp_path / "epochs")["loss"].to_pylist() == [0.9, 0.7]

    def test_no_number_becomes_null(self, tmp_path):
        table = opened(tmp_path)
        table.put_trial(trial_row(0, loss=math.nan, accuracy=math.inf, validation_loss=0.5))
        table.put_epoch(epoch_row(0, 1, loss=-math.inf))
        table.close()
        row = trials_on_disk(tmp_path)[0]
        assert (row["loss"], row["accuracy"], row["validation_loss"]) == (None, None, 0.5)
        assert pq.read_table(tmp_path / "epochs").to_pylist()[0]["loss"] is None

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"acuracy": 0.5}, "no column 'acuracy' is declared; did you mean 'accuracy'"),
            ({"accuracy": "0.5"}, "'accuracy' is declared as float, but '0.5' is str"),
            ({"accuracy": True}, "'accuracy' is declared as float, but True is bool"),
            ({"model_bytes": 10.0}, "'model_bytes' is declared as int, but 10.0 is float"),
            ({"sweep": 3}, "'sweep' is declared as str, but 3 is int"),
        ],
    )
    def test_a_wrong_row_is_refused_and_nothing_is_written(self, tmp_path, wrong, words):
        table = opened(tmp_path)
        table.put_trial(trial_row(0))
        before = contents(tmp_path)
        with pytest.raises(ValueError, match=re.escape(words)):
            table.put_trial({**trial_row(1), **wrong})
        with pytest.raises(ValueError, match=re.escape(words)):
            table.put_epoch({**epoch_row(1, 1), **wrong})
        assert contents(tmp_path) == before
        table.close()
        again = opened(tmp_path)
        again.put_trial(trial_row(1, accuracy=1, model_bytes=None))  # 1 is a float, None anything
        again.close()
        assert sorted(trials_on_disk(tmp_path)) == [0, 1]
        assert epochs_on_disk(tmp_path) == []

    def test_a_snapshot_is_due_only_now_and_then(self, tmp_path):
        table = opened(tmp_path)
        table.put_trial(trial_row(0))
        table.snapshot_if_due()  # opening has just written one
        assert trials_on_disk(tmp_path) == {}
        table._next_snapshot = 0.0
        table.snapshot_if_due()
        assert list(trials_on_disk(tmp_path)) == [0]

    def test_listeners_hear_the_same_again(self, tmp_path):
        live, again = [], []
        table = Store(tmp_path, *schemas(), [live.append])
        table.put_trial(trial_row(0))
        table.put("suggested", {"number": 0, "params": {}})
        table.put_epoch(epoch_row(0, 1, loss=0.5))
        table.put_trial(trial_row(0, status="FAILED"))
        table.close()
        Store(tmp_path, *schemas(), [again.append]).close()
        assert [list(record) for record in live] == [list(record) for record in again]
        kinds = [kind for kind, _, _ in live]
        assert kinds == ["sweep", "trial", "suggested", "epoch", "trial", "closed"]

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
        fewer = [table.remove(table.get_field_index("sparsity")) for table in schemas()]
        Store(tmp_path, *fewer).close()
        before = contents(tmp_path)
        with pytest.raises(ValueError, match="log has an older or other schema"):
            opened(tmp_path)
        log_of(tmp_path).unlink()  # an older version had none
        del before[str(log_of(tmp_path))]
        with pytest.raises(ValueError, match=r"trials.parquet has an older or other schema"):
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

    def test_a_row_raises_and_leaves_the_log_whole(self, tmp_path, monkeypatch):
        table = opened(tmp_path)
        table.put_trial(trial_row(0))
        write, before = os.write, log_of(tmp_path).read_bytes()

        def half(file: int, content: bytes) -> int:
            if len(content) < 100:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(file, content[:99])

        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space left"):
            table.put_trial(trial_row(1))
        assert log_of(tmp_path).read_bytes() == before
        assert list(table.trials) == [0]
        monkeypatch.undo()  # there is room again
        table.put_trial(trial_row(1))
        table.close()
        assert sorted(trials_on_disk(tmp_path)) == [0, 1]
