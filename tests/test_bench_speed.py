"""The bench of the time to an accuracy: its arithmetic, and a run on a few digits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from raybench.bench import speed
from raybench.bench.speed import Point, seconds_to


def test_the_first_epoch_that_reaches_the_target_counts():
    curve = [Point(1.0, 0.5), Point(2.0, 0.8), Point(3.0, 0.7), Point(4.0, 0.9)]
    assert seconds_to(curve, 0.75) == 2.0
    assert seconds_to(curve, 0.9) == 4.0
    assert seconds_to(curve, 0.95) is None


def test_a_missed_target_is_no_ratio(monkeypatch):
    curves = {"plain": [Point(5.0, 0.9)], "speed": [Point(1.0, 0.2)]}
    monkeypatch.setattr(
        speed,
        "_points",
        lambda base, seed: iter(curves["plain" if base is speed.speed.plain else "speed"]),
    )
    assert speed.measure()["speed_ratio"] == 0.0
    curves["speed"] = [Point(1.0, 0.2), Point(2.0, 0.95)]
    figures = speed.measure()
    assert figures["speed_ratio"] == 2.5
    assert figures["target_accuracy"] == pytest.approx(0.89)


@pytest.mark.slow
def test_it_measures_every_figure_that_it_claims(tiny, monkeypatch):
    monkeypatch.setattr(speed, "SEEDS", (0,))
    monkeypatch.setattr(speed, "SHARE", 0.1)
    monkeypatch.delenv("RAYBENCH_DATA", raising=False)
    for name in ("plain", "base"):
        base = getattr(speed.speed, name)
        recipe = replace(base.recipe, epochs=2, batch=32, crop=1)
        monkeypatch.setattr(speed.speed, name, replace(base, image_size=16, recipe=recipe))
    figures = speed.measure()
    assert figures.keys() >= speed.claims.keys()
    assert all(math.isfinite(value) for value in figures.values())
