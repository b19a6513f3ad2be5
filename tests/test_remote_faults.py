"""A sweep at an address whose store fails, loses a segment, or is written by another."""

from __future__ import annotations

import pandas as pd
import pytest
from bucket import Broken, another_machine
from bucket import bucket as bucket
from bucket import s3 as s3
from remote_sweeps import Killed, assert_kept, ended, killed, seen, sweep_at, ticks, until
from remote_sweeps import _quick as _quick
from remote_sweeps import space as space
from small_sweep import _quick_disk as _quick_disk
from small_sweep import drive
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.results.remote import mirror

pytestmark = pytest.mark.usefixtures("bucket")


def test_what_was_not_copied_goes_up_later(space, monkeypatch):
    with killed(monkeypatch), sweep_at(space) as sweep:
        sweep.store.flush(1.0)
        Broken.fails = staticmethod(lambda key: "lease" not in key)
        drive(sweep, reports=12)
        sweep.store.snapshot()
        done = ended(pd.read_parquet(sweep.folder / "trials").set_index("number"))
        raise Killed
    Broken.fails = staticmethod(lambda key: False)
    assert len(done) > 1
    with sweep_at(space, stale_s=0.5) as sweep:
        pass
    assert_kept(done, seen())


@pytest.mark.parametrize("here", [True, False], ids=["same machine", "another machine"])
def test_a_missing_segment(space, bucket, monkeypatch, tmp_path, capsys, here):
    with sweep_at(space) as sweep:
        drive(sweep)
    rows = seen()
    names = [key for key in bucket.keys("runs/s") if key.startswith(".state/log/")]
    assert len(names) > 3
    bucket.delete(f"runs/s/{names[1]}")
    if not here:
        another_machine(monkeypatch, tmp_path / "other")
    with sweep_at(space, trials=9) as sweep:
        drive(sweep)
    assert "a segment of the log is missing" in capsys.readouterr()[1]
    assert_kept(rows, seen())
    another_machine(monkeypatch, tmp_path / "third")
    with sweep_at(space, trials=10) as sweep:
        drive(sweep)
    assert "missing" not in capsys.readouterr()[1]
    assert_kept(rows, seen())


def test_a_store_that_is_down_for_a_while(space, capsys):
    with sweep_at(space) as sweep:
        Broken.fails = staticmethod(lambda key: True)
        drive(sweep, reports=6)
        until(lambda: "the sweep continues in" in capsys.readouterr()[1])
        drive(sweep, reports=6)
        Broken.fails = staticmethod(lambda key: False)
        until(lambda: "answers again" in capsys.readouterr()[1])
        drive(sweep)
        done = sweep.tally.ended
    assert len(seen()) == done
    with sweep_at(space) as sweep:  # the trials that `drive` had left
        drive(sweep)
    assert len(seen()) == 8


def test_a_store_that_stays_down_ends_the_sweep_like_a_full_disk(space, monkeypatch):
    monkeypatch.setattr(mirror, "FLUSH_S", 0.1)

    def run() -> None:
        with sweep_at(space, patience_s=0.3) as sweep:
            Broken.fails = staticmethod(lambda key: True)
            drive(sweep, reports=3)
            ticks(sweep)

    with pytest.raises(OSError, match=r"no answer.*the results are in .*same command.*resumes"):
        run()
    Broken.fails = staticmethod(lambda key: False)
    with sweep_at(space) as sweep:
        drive(sweep)
    assert len(seen()) == 8


def test_a_writer_that_lost_its_lease_ends(space, bucket):
    def run() -> None:
        with sweep_at(space, stale_s=3.0) as sweep:
            drive(sweep, reports=3)
            (name,) = [key for key in bucket.keys("runs/s") if key.startswith(".state/lease/")]
            bucket.delete(f"runs/s/{name}")
            bucket.write("runs/s/.state/lease/000009-00000000", b"{}")
            ticks(sweep)

    with pytest.raises(OSError, match="another process writes at s3"):
        run()
