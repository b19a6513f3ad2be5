"""The engine's cost after many trials, in small; `bench scale` has the whole of it."""

from __future__ import annotations

import pytest

from raybench.bench import scale
from raybench.results.log import Record
from raybench.search.sampling import ELITE, RECENT, Sampling


@pytest.mark.slow
def test_a_trial_costs_no_more_after_six_hundred_others():
    figures = scale.measure(trials=800, early=250, around=50)
    for name in ("scale_ratio_1", "scale_ratio_2"):
        assert figures[name] <= 1.6, figures  # by 1.3 over thousands; a short run scatters
    assert figures["reopen_s"] <= 3


def ended(number: int, value: float) -> list[Record]:
    text = '{"name": "FloatDistribution", "attributes": {"low": 0.0, "high": 1.0, "log": false, '
    text += '"step": null}}'
    suggested = {"number": number, "params": {"x": value}, "distributions": {"x": text}}
    trial = {"number": number, "status": "COMPLETE", "accuracy": value, "model_bytes": 1.0}
    return [("suggested", 0.0, suggested), ("trial", 0.0, trial)]


@pytest.mark.parametrize("objectives", [{"accuracy": "max"}, {"accuracy": "max", "loss": "min"}])
def test_a_sampler_sees_the_last_and_the_best_of_all(objectives):
    names = dict.fromkeys(objectives, None)
    sampling = Sampling(objectives, "tpe", seed=0, epochs=9)
    best = range(10, 30)
    for number in range(3000):
        for kind, when, content in ended(number, 0.99 if number in best else 0.5):
            sampling.take((kind, when, {**names, "loss": 1.0, **content}))
    seen = [trial.number for trial in sampling.visible()]
    assert set(best) <= set(seen)
    assert set(range(3000 - RECENT, 3000)) <= set(seen)
    assert len(seen) <= RECENT + 2 * ELITE
    trial = sampling.ask(3000)
    assert 0 <= trial.suggest_float("x", 0.0, 1.0) <= 1
