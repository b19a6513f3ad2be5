"""A sweep at an address of the test's S3 server: run, killed, and looked at."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pandas as pd
import pytest
from bucket import Broken
from small_sweep import CONDITIONAL, ONE, PLAIN, abandon

from raybench.results.core import FINISHED
from raybench.results.remote import mirror, place, published, segments
from raybench.results.remote.mirror import Mirror
from raybench.search.sweep import Sweep

RUNS = "s3://bucket/runs"
SOON_S = 20.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(place, "ObjectStore", Broken)
    monkeypatch.setattr(Broken, "fails", staticmethod(lambda key: False))
    monkeypatch.setattr(mirror, "EVERY_S", 0.05)
    monkeypatch.setattr(mirror, "CHECKPOINT_EVERY_S", 0.05)
    monkeypatch.setattr("raybench.results.remote.outage.FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(segments, "SEGMENT", 4000)
    monkeypatch.setattr(published, "SOONEST_S", 0.05)


@pytest.fixture
def space(load):
    return load(ONE, CONDITIONAL)


@contextlib.contextmanager
def sweep_at(space, trials: int = 8, **options) -> Iterator[Sweep]:
    """The sweep `s`; closed unless the body raises."""
    with place.opened(RUNS, "s", **options) as opened:
        sweep = Sweep(opened.folder, space, trials=trials, overrides=PLAIN)
        sweep.store.check, sweep.store.flush = opened.check, opened.flush
        try:
            yield sweep
        except BaseException:
            abandon(sweep)
            raise
        sweep.close()


class Killed(BaseException):
    """Stands for SIGKILL."""


def stopped(self: Mirror) -> None:
    self._ended.set()
    for thread in self._threads:
        thread.join(SOON_S)


@contextlib.contextmanager
def killed(monkeypatch) -> Iterator[None]:
    """A kill at the end of the body: nothing is flushed, and the lease is dropped."""
    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "close", stopped)
        with contextlib.suppress(Killed):
            yield


def seen(address: str = f"{RUNS}/s") -> pd.DataFrame:
    return pd.read_parquet(f"{address}/trials").set_index("number").sort_index()


def ended(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["status"].isin(FINISHED)]


def assert_kept(before: pd.DataFrame, after: pd.DataFrame) -> None:
    """No row has gone, and none that had ended has changed."""
    assert set(before.index) <= set(after.index)
    assert (after.loc[before.index, "key"] == before["key"]).all()
    pd.testing.assert_frame_equal(after.loc[ended(before).index], ended(before), check_dtype=False)


def there(rows: int) -> bool:
    """Whether the store's table has so many rows."""
    with contextlib.suppress(FileNotFoundError):
        return len(seen()) >= rows
    return False


def ticks(sweep: Sweep) -> None:
    """What the running sweep calls between its events."""
    end = time.monotonic() + SOON_S
    while time.monotonic() < end:
        sweep.store.snapshot_if_due()
        time.sleep(0.01)


def until(true) -> None:
    end = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
