"""The watchdog: Ray that is gone is noticed, Ray that is slow or a process that slept is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from raybench.cluster import watchdog
from raybench.cluster.watchdog import Watchdog

DEADLINE_S = 30.0


class Answers(Watchdog):
    """A Ray that answers as the test says."""

    def __init__(self, silent_s: float | None = None) -> None:
        self.lost = threading.Event()
        self.words: list[str] = []
        self.raylet: Iterator[bool] = iter(lambda: True, None)
        self.gcs: Iterator[bool] = iter(lambda: True, None)
        self.looks = 0
        self._lost, self._silent_s = self._hear, silent_s
        self._heard = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _hear(self, words: str) -> None:
        self.words.append(words)
        self.lost.set()

    def _raylet_answers(self) -> bool:
        self.looks += 1
        return next(self.raylet, False)

    def _gcs_answers(self) -> bool:
        return next(self.gcs, False)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(watchdog, "LOOK_EVERY_S", 0.005)
    monkeypatch.setattr(watchdog, "GONE_S", {"raylet": 0.02, "GCS": 0.04})
    monkeypatch.setattr(watchdog, "SLEPT_S", 2.0)


def looked(ray: Answers, looks: int) -> None:
    end = time.monotonic() + DEADLINE_S
    while ray.looks < looks:
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(("name", "words"), [("raylet", "raylet"), ("gcs", "GCS")])
def test_what_is_gone_is_named_once(name, words):
    ray = Answers()
    setattr(ray, name, iter([True, True]))
    with ray:
        assert ray.lost.wait(DEADLINE_S)
        ray._thread.join(DEADLINE_S)
    assert ray.words == [f"Ray's {words} is gone"]


def test_one_answer_that_fails_is_none(monkeypatch):
    monkeypatch.setattr(watchdog, "GONE_S", {"raylet": 0.0, "GCS": 0.0})
    ray = Answers()
    ray.gcs = iter([False, True] * 20 + [True] * 10_000)
    with ray:
        looked(ray, 45)
    assert not ray.lost.is_set()


def test_looks_that_take_long_find_it_all_the_same(monkeypatch):
    """An answer of a dead GCS that takes longer than a stopped process's pause."""
    monkeypatch.setattr(watchdog, "SLEPT_S", 0.05)
    ray = Answers()

    def slow() -> bool:
        time.sleep(0.08)
        return False

    ray._gcs_answers = slow  # type: ignore[method-assign]
    with ray:
        assert ray.lost.wait(DEADLINE_S)
    assert ray.words == ["Ray's GCS is gone"]


def test_silence_ends_a_sweep_only_where_it_was_asked_for():
    quiet = Answers(silent_s=0.05)
    with quiet:
        assert quiet.lost.wait(DEADLINE_S)
    assert quiet.words == ["no trial has reported for 0.05 s"]
    patient = Answers()
    with patient:
        looked(patient, 30)
    assert not patient.lost.is_set()


def test_reports_are_no_silence():
    ray = Answers(silent_s=5.0)
    ray._heard -= 4.9
    ray.heard()
    with ray:
        looked(ray, 30)
    assert not ray.lost.is_set()
