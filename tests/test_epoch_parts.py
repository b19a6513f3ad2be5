"""The parts of the table of epochs: full ones are sealed, and whole whatever happens."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from table_rows import epoch_row, epochs_on_disk, opened, trial_row
from table_rows import tmp_path as tmp_path

from raybench.results import store
from raybench.results.store import Store


class TestParts:
    @pytest.fixture(autouse=True)
    def _small_parts(self, monkeypatch):
        monkeypatch.setattr(store, "PART_ROWS", 4)

    def written(self, folder: Path, trials: int) -> list[tuple[int, int]]:
        """Trials of three epochs each that have ended."""
        table, keys = opened(folder), []
        for number in range(trials):
            table.put_trial(trial_row(number))
            for epoch in (1, 2, 3):
                table.put_epoch(epoch_row(number, epoch, loss=number + epoch / 10))
                keys.append((number, epoch))
            table.put_trial({"number": number, "status": "COMPLETE"})
            table.snapshot()
        return keys

    def test_hold_every_epoch_once(self, tmp_path):
        keys = self.written(tmp_path, 7)
        parts = [pq.read_table(p).num_rows for p in sorted((tmp_path / "epochs").iterdir())]
        assert parts == [6, 6, 6, 3]
        assert epochs_on_disk(tmp_path) == keys
        again = opened(tmp_path)
        again.put_epoch(epoch_row(7, 1))
        again.close()
        assert epochs_on_disk(tmp_path) == [*keys, (7, 1)]

    def test_hold_trials_that_have_ended_alone(self, tmp_path):
        """The epochs of one that runs may be reported again."""
        table = opened(tmp_path)
        table.put_trial(trial_row(9))
        table.put_epoch(epoch_row(9, 1, loss=0.5))
        table.close()
        keys = self.written(tmp_path, 3)
        again = opened(tmp_path)
        again.put_epoch(epoch_row(9, 1, loss=0.25))
        again.close()
        assert epochs_on_disk(tmp_path) == [*keys, (9, 1)]
        actual = pd.read_parquet(tmp_path / "epochs")
        assert actual[actual["number"] == 9]["loss"].tolist() == [0.25]

    def test_that_are_full_are_never_written_again(self, tmp_path):
        self.written(tmp_path, 4)
        full = tmp_path / "epochs" / "epochs-00000.parquet"
        before = (full.stat().st_ino, full.stat().st_mtime_ns)
        again = opened(tmp_path)
        again.put_epoch(epoch_row(9, 1))
        again.close()
        assert (full.stat().st_ino, full.stat().st_mtime_ns) == before

    @pytest.mark.parametrize("damage", ["missing", "empty", "flipped"])
    def test_that_are_damaged_come_anew_from_the_log(self, tmp_path, damage):
        keys = self.written(tmp_path, 5)
        path = tmp_path / "epochs" / "epochs-00001.parquet"
        before = pq.read_table(path)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(b"" if damage == "empty" else content)
        if damage == "missing":
            path.unlink()
        again = opened(tmp_path)
        assert str(path) in again.remarks[0]
        again.close()
        assert pq.read_table(path).equals(before)
        assert epochs_on_disk(tmp_path) == keys
        assert opened(tmp_path).remarks == []

    def test_a_full_disk_while_one_is_sealed_loses_no_epoch(self, tmp_path, monkeypatch):
        table = opened(tmp_path)
        for number in range(3):
            for epoch in (1, 2):
                table.put_epoch(epoch_row(number, epoch))
            table.put_trial(trial_row(number, status="COMPLETE"))
        write, fails = Store._write, [True]

        def full(self, content, path):
            if fails.pop() if fails else False:
                raise OSError("No space left on device")
            return write(self, content, path)

        monkeypatch.setattr(Store, "_write", full)
        with pytest.raises(OSError, match="No space"):
            table.snapshot()
        table.close()  # there is room again
        keys = [(number, epoch) for number in range(3) for epoch in (1, 2)]
        assert epochs_on_disk(tmp_path) == keys
        opened(tmp_path).close()
        assert epochs_on_disk(tmp_path) == keys

    def test_survive_without_a_close(self, tmp_path):
        keys = self.written(tmp_path, 3)
        left = opened(tmp_path)
        left.put_epoch(epoch_row(3, 1))
        del left
        opened(tmp_path)
        assert epochs_on_disk(tmp_path) == [*keys, (3, 1)]
