"""Leases: one writer at an address, whatever happens to it."""

from __future__ import annotations

import threading
import time

import pytest
from bucket import Broken, Bucket
from bucket import bucket as bucket
from bucket import s3 as s3

from raybench.results.remote import lease as leases
from raybench.results.remote.explained import NoAnswer
from raybench.results.remote.lease import Lease, LeaseLost

SOON_S = 20.0
# moto tells whole seconds, as S3 does.
QUICK = {"stale_s": 3.0, "renew_s": 0.2}


@pytest.fixture
def store(bucket: Bucket) -> Broken:
    return Broken("s3://bucket/runs/s")


def frozen(lease: Lease) -> None:
    """What SIGKILL does: nobody renews it, and it stays."""
    lease._ended.set()
    lease._thread.join(SOON_S)


def until(true) -> None:
    end = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_is_taken_and_given_back(store):
    first = Lease(store)
    first.require()
    assert len(store.listing(leases.FOLDER)) == 1
    first.release()
    assert not store.listing()
    second = Lease(store)
    assert second.generation == 1  # nothing was written
    second.release()


def test_a_second_writer_is_refused_while_the_first_one_lives(store):
    first = Lease(store, **QUICK)
    with pytest.raises(ValueError, match=r"another process writes at s3.*process \d+ on .*since"):
        Lease(store, machine="another", **QUICK)
    first.require()
    first.release()


def test_a_second_writer_waits_for_one_that_is_dead(store):
    said: list[str] = []
    first = Lease(store, **QUICK)
    frozen(first)
    began = time.monotonic()
    second = Lease(store, machine="another", say=said.append, **QUICK)
    assert 1.0 < time.monotonic() - began < SOON_S
    assert second.generation == 2
    assert len(said) == 1
    assert "waiting for its end" in said[0]
    second.release()


def test_a_store_that_tells_no_times(tmp_path):
    store = Broken(f"memory://{tmp_path}/s")
    first = Lease(store, **QUICK)
    with pytest.raises(ValueError, match="another process writes at"):
        Lease(store, machine="another", **QUICK)
    frozen(first)
    Lease(store, machine="another", **QUICK).release()


def test_one_that_ends_is_waited_for(store):
    first = Lease(store, **QUICK)
    threading.Timer(1.0, first.release).start()
    second = Lease(store, machine="another", wait_s=SOON_S, stale_s=60.0, renew_s=0.2)
    second.release()


def test_a_dead_process_of_this_machine_is_not_waited_for(store, monkeypatch):
    first = Lease(store, stale_s=60.0, renew_s=0.2)
    frozen(first)
    monkeypatch.setattr(leases, "_lives", lambda holder: False)
    second = Lease(store, stale_s=60.0, renew_s=0.2)
    second.release()


def test_which_processes_live():
    here = {"pid": leases.os.getpid(), "began": leases._began(leases.os.getpid())}
    assert leases._lives(here)
    assert not leases._lives({**here, "began": "1"})
    assert not leases._lives({"pid": 2**22 + 1, "began": "1"})
    assert leases._lives({})


def test_one_that_was_taken_ends_its_writer(store):
    first = Lease(store, **QUICK)
    renew, first._renew = first._renew, lambda: None  # the machine stands still
    second = Lease(store, machine="another", **QUICK)
    first._renew = renew
    until(lambda: first.lost is not None)
    with pytest.raises(LeaseLost, match="another process writes at s3"):
        first.require()
    first.release()
    second.require()
    assert len(store.listing(leases.FOLDER)) == 1
    until(lambda: second._renewed > time.clock_gettime(time.CLOCK_BOOTTIME) - 0.5)
    second.release()


def test_one_that_cannot_be_renewed_lets_nothing_be_written(store):
    first = Lease(store, **QUICK)
    store.fails = lambda key: True
    until(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) - first._renewed > 2.5)
    with pytest.raises(NoAnswer, match="could not be renewed"):
        first.require()
    store.fails = lambda key: False
    until(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) - first._renewed < 1.0)
    first.require()
    first.release()


def test_of_many_that_begin_at_once_one_writes(bucket):
    begun: list[Lease] = []
    refused: list[Exception] = []

    def begin(number: int) -> None:
        try:
            store = Broken("s3://bucket/runs/s")
            begun.append(Lease(store, machine=str(number), stale_s=30.0, renew_s=0.2))
        except ValueError as error:
            refused.append(error)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * SOON_S)
    assert (len(begun), len(refused)) == (1, 5)
    begun[0].release()
