"""A sweep at an address: other machines, and what a reader there sees."""

from __future__ import annotations

import threading

import pandas as pd
import pytest
from bucket import Broken, Bucket, another_machine
from bucket import bucket as bucket
from bucket import s3 as s3
from remote_sweeps import (
    RUNS,
    SOON_S,
    Killed,
    assert_kept,
    killed,
    seen,
    sweep_at,
    there,
    until,
)
from remote_sweeps import _quick as _quick
from remote_sweeps import space as space
from small_sweep import CONDITIONAL, ONE, assert_study_agrees, drive
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.results import log
from raybench.results.read import read
from raybench.results.remote import copied, place, segments
from raybench.results.remote.object_store import ObjectStore

pytestmark = pytest.mark.usefixtures("bucket")


def test_local_results_are_as_before(space, tmp_path):
    with place.opened(str(tmp_path), "s") as local:
        assert local.folder == tmp_path / "s"
        assert local.shown == str(tmp_path / "s")


def test_all_of_a_sweep_is_at_its_address(space, bucket: Bucket, tmp_path):
    with sweep_at(space) as sweep:
        drive(sweep)
        folder = sweep.folder
    there = {name: key for key in bucket.keys("runs/s") if (name := copied.key_here(key))}
    assert there.keys() == copied.scan(folder).keys()
    assert {f"models/{path.name}" for path in (folder / "models").iterdir()} <= there.keys()
    for name, key in there.items():
        assert bucket.read(f"runs/s/{key}") == (folder / name).read_bytes()
    store = ObjectStore(f"{RUNS}/s")
    remote = segments.assembled(store, store.listing())
    assert remote.content == log.path_in(folder).read_bytes()
    results, local = read(f"{RUNS}/s"), read(folder)
    pd.testing.assert_frame_equal(results.trials, local.trials)
    pd.testing.assert_frame_equal(results.epochs, local.epochs)
    order = ["number", "epoch"]
    for table in ("trials", "epochs"):
        public = pd.read_parquet(f"{RUNS}/s/{table}").sort_values(order, ignore_index=True)
        plain = pd.read_parquet(folder / table).sort_values(order, ignore_index=True)
        pd.testing.assert_frame_equal(public, plain, check_dtype=False)


def test_it_goes_on_on_another_machine(space, bucket, monkeypatch, tmp_path):
    with killed(monkeypatch), sweep_at(space) as sweep:
        drive(sweep, reports=9)
        for number in sweep.tally.running:
            (sweep.folder / f".state/checkpoints/{number}.pt").write_bytes(b"state %d" % number)
        running, before = list(sweep.tally.running), sweep.store.trials
        sweep.store.snapshot()
        sweep.store.flush(1.0)
        raise Killed
    rows = seen()
    assert running
    assert {*rows.index, *running} == set(before)
    assert set(read(f"{RUNS}/s").trials["number"]) == set(before)
    another_machine(monkeypatch, tmp_path / "other")
    with sweep_at(space, machine="other", stale_s=0.5) as sweep:
        assert list(sweep.tally.running) == running
        for number in running:
            path = sweep.folder / f".state/checkpoints/{number}.pt"
            assert path.read_bytes() == b"state %d" % number
        given = drive(sweep)
        assert {task.number for task in given} >= set(running)
        folder = sweep.folder
    assert_kept(rows, seen())
    assert len(seen()) == 8
    assert seen()["key"].is_unique
    assert_study_agrees(folder, space.objectives)
    assert not [key for key in bucket.keys("runs/s") if "checkpoints" in key]
    models = {key for key in bucket.keys("runs/s") if key.startswith("models/")}
    assert models == {key for key in copied.scan(folder) if key.startswith("models/")}


def test_a_machine_that_others_have_overtaken(space, monkeypatch, tmp_path, capsys):
    with killed(monkeypatch), sweep_at(space) as sweep:
        drive(sweep, reports=4)
        sweep.store.flush(1.0)
        Broken.fails = staticmethod(lambda key: "lease" not in key)
        drive(sweep, reports=4)
        raise Killed
    Broken.fails = staticmethod(lambda key: False)
    first, other = tmp_path / "cache", tmp_path / "other"
    another_machine(monkeypatch, other)
    with sweep_at(space, machine="other", stale_s=0.5) as sweep:
        drive(sweep)
    rows = seen()
    another_machine(monkeypatch, first)
    with sweep_at(space, trials=10) as sweep:
        drive(sweep)
    assert (
        "has gone on elsewhere; what was only on this machine is kept in" in capsys.readouterr()[1]
    )
    assert_kept(rows, seen())
    assert len(seen()) == 10
    another_machine(monkeypatch, other)  # behind, but not on another way
    with sweep_at(space, trials=11) as sweep:
        drive(sweep)
    assert "elsewhere" not in capsys.readouterr()[1]
    assert len(seen()) == 11


def test_an_emptied_address_begins_anew(space, bucket, capsys):
    with sweep_at(space, trials=3) as sweep:
        drive(sweep)
    bucket.files.delete_dir("bucket/runs/s")
    with sweep_at(space, trials=2) as sweep:
        assert sweep.tally.trials == 0
        drive(sweep)
    assert "is empty now; what was only on this machine is kept in" in capsys.readouterr()[1]
    assert len(seen()) == 2


def test_another_sweep_at_the_address(load, space):
    with sweep_at(space, trials=2) as sweep:
        drive(sweep)
    other = load(ONE, CONDITIONAL.replace("0.9", "0.8"))
    told = rf"^{RUNS}/s holds another sweep .*--name"
    with pytest.raises(ValueError, match=told), sweep_at(other, trials=2):
        pass


def test_readers_never_see_a_row_go(space, monkeypatch, tmp_path):
    """Of a table at any moment, while the log and the tables are put and writers are killed."""
    stop, wrong = threading.Event(), list[str]()

    def look() -> None:
        before = pd.DataFrame({"status": []})
        while not stop.is_set():
            try:
                now = seen()
                if len(before):
                    assert_kept(before, now)
                before = now
            except FileNotFoundError:
                if len(before):
                    wrong.append("the table is gone")
            except Exception as error:
                wrong.append(repr(error))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(4):
            another_machine(monkeypatch, tmp_path / str(number))
            with (
                killed(monkeypatch),
                sweep_at(space, 24, machine=str(number), stale_s=0.5) as sweep,
            ):
                drive(sweep, reports=8)
                sweep.store.snapshot()
                until(lambda: there(sweep.tally.ended - 2))
                raise Killed
    finally:
        stop.set()
        reader.join(SOON_S)
    assert not wrong
