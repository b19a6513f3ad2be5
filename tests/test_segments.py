"""The log in segments: put, assembled, replaced; and writers that lose their lease."""

from __future__ import annotations

from pathlib import Path

import pytest
from bucket import Broken, Bucket
from bucket import bucket as bucket
from bucket import s3 as s3

from raybench.results import log
from raybench.results.remote import segments
from raybench.results.remote.object_store import ObjectStore
from raybench.results.remote.segments import LogCopy, assembled


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT", 300)


@pytest.fixture
def store(bucket: Bucket) -> ObjectStore:
    return Broken("s3://bucket/runs/s")


def lines(first: int, last: int) -> bytes:
    records = [("epoch", float(n), {"number": n, "epoch": 1}) for n in range(first, last)]
    return b"".join(map(log.line_of, records))


def grown(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def content_of(store: ObjectStore) -> bytes:
    found = assembled(store, store.listing())
    assert found.whole
    return found.content


def test_what_is_appended_arrives(store, tmp_path):
    path = tmp_path / "log"
    copy = LogCopy(store, path, 1, 0)
    copy.copy()
    assert content_of(store) == b""
    for at in range(0, 40, 3):
        grown(path, lines(at, at + 3))
        copy.copy()
        assert content_of(store) == path.read_bytes()
        assert copy.copied == path.stat().st_size
    names = [key.rpartition("/")[2] for key in store.listing()]
    assert len(names) > 5
    assert {name[:-5] for name in names} == {"000001-00-000000000000"}
    assert all(one.size <= segments.SEGMENT for one in store.listing().values())


def test_a_torn_line_waits_for_its_end(store, tmp_path):
    path, whole = tmp_path / "log", lines(0, 3)
    copy = LogCopy(store, path, 1, 0)
    path.write_bytes(whole[:-7])
    copy.copy()
    assert content_of(store) == lines(0, 2)
    grown(path, whole[-7:])
    copy.copy()
    assert content_of(store) == whole


def test_a_long_line_is_one_segment(store, tmp_path):
    path = tmp_path / "log"
    path.write_bytes(log.line_of(("prior", 0.0, {"a": "x" * 1000})) + lines(0, 9))
    LogCopy(store, path, 1, 0).copy()
    assert content_of(store) == path.read_bytes()


def test_the_next_writer_goes_on(store, tmp_path):
    path = tmp_path / "log"
    for generation in range(1, 5):
        start = path.stat().st_size if path.exists() else 0
        copy = LogCopy(store, path, generation, start)
        grown(path, lines(10 * generation, 10 * generation + 7))
        copy.copy()
        assert content_of(store) == path.read_bytes()


def test_what_a_lost_writer_puts_late_is_not_read(store, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(lines(0, 5))
    stale = LogCopy(store, old, 1, 0)
    stale.copy()
    new.write_bytes(content_of(store))
    copy = LogCopy(store, new, 2, new.stat().st_size)
    grown(new, lines(100, 110))
    copy.copy()
    grown(old, lines(5, 30))
    stale.copy()
    assert content_of(store) == new.read_bytes()
    grown(new, lines(110, 120))
    copy.copy()
    assert content_of(store) == new.read_bytes()


def test_a_log_that_was_written_anew_replaces_the_old_one(store, tmp_path):
    path = tmp_path / "log"
    path.write_bytes(lines(0, 30))
    copy = LogCopy(store, path, 1, 0)
    copy.copy()
    before = store.listing()
    log.replace(path, lines(50, 90))
    copy.copy()
    assert content_of(store) == lines(50, 90)
    assert not before.keys() & store.listing().keys()
    grown(path, lines(90, 99))
    copy.copy()
    assert content_of(store) == lines(50, 99)


@pytest.mark.parametrize("puts", range(5))
def test_a_kill_while_it_is_replaced_leaves_the_old_one(store, tmp_path, puts):
    path = tmp_path / "log"
    path.write_bytes(lines(0, 30))
    copy = LogCopy(store, path, 1, 0)
    copy.copy()
    log.replace(path, lines(50, 90))
    done = 0

    def kill() -> None:
        nonlocal done
        done += 1
        if done > puts:
            raise KeyboardInterrupt

    copy._before_put = kill
    with pytest.raises(KeyboardInterrupt):
        copy.copy()
    assert content_of(store) == lines(0, 30)
    last = LogCopy(store, path, 2, None)
    last.copy()
    assert content_of(store) == lines(50, 90)


def test_a_put_that_fails_is_made_up_for(store, tmp_path):
    path = tmp_path / "log"
    path.write_bytes(lines(0, 30))
    copy, puts = LogCopy(store, path, 1, 0), 0

    def third(key: str) -> bool:
        nonlocal puts
        puts += 1
        return puts == 3

    store.fails = third
    with pytest.raises(OSError, match="no answer"):
        copy.copy()
    assert path.read_bytes().startswith(content_of(store))
    grown(path, lines(30, 40))
    copy.copy()
    assert content_of(store) == path.read_bytes()


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_missing_segment_is_noticed(store, tmp_path, number):
    path = tmp_path / "log"
    path.write_bytes(lines(0, 30))
    LogCopy(store, path, 1, 0).copy()
    grown(path, lines(30, 40))
    LogCopy(store, path, 2, len(lines(0, 30))).copy()
    store.delete(f"{segments.FOLDER}/000001-00-000000000000-{number:04d}")
    found = assembled(store, store.listing())
    assert not found.whole
    (tmp_path / "holed").write_bytes(found.content)
    assert log.survey(tmp_path / "holed").damaged == 1
