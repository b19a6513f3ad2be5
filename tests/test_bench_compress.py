"""The bench of the shipped file, with networks that have hardly learned: every figure is there."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from raybench.bench import compress


@pytest.mark.nightly
def test_it_measures_every_figure_that_it_claims(monkeypatch):
    monkeypatch.setattr(compress, "base", replace(compress.base, subset=0.06))
    monkeypatch.setattr(compress, "EPOCHS", dict.fromkeys(compress.EPOCHS, 1))
    monkeypatch.setattr(compress, "ROUNDS", 2)
    monkeypatch.setattr(compress, "RUNS", {1: 2, 64: 1})
    monkeypatch.setattr(compress, "DECODES", 2)
    figures = compress.measure()
    assert figures.keys() >= compress.claims.keys()
    assert all(math.isfinite(figure) and figure > 0 for figure in figures.values())
    json.dumps(figures)
    # Bytes need no trained network to be in order.
    assert 8 < figures["size_ratio_60_8"] < figures["size_ratio_80_4"] < figures["size_ratio_90_4"]
    assert figures["cut_bytes"] < figures["wide_bytes"] < 0.3
