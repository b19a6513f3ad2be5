"""The tests behind a verdict, against SciPy's and by counting what they claim of noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from raybench.bench import verdict as bench
from raybench.verdict.judgement import Paired, judge
from raybench.verdict.statistics import CLAIM, holm, p_above, p_below, seeds_needed

A, B, C = ("a",), ("b",), ("c",)


def pair(points, bytes_ratio=0.5):
    points = np.array(points, dtype=float)
    return Paired(points, {"bytes": np.full(len(points), np.log(bytes_ratio))})


@pytest.mark.parametrize("margin", [-1.0, 0.0, 0.4])
def test_p_values_are_those_of_a_one_sided_t_test(margin):
    differences = np.random.default_rng(0).normal(0.3, 0.5, size=7)
    above = stats.ttest_1samp(differences, margin, alternative="greater").pvalue
    assert p_above(differences, margin) == pytest.approx(above)
    assert p_below(differences, margin) == pytest.approx(1 - above)


def test_one_seed_claims_nothing_and_equal_differences_claim_what_they_are():
    assert p_above(np.array([5.0]), 0.0) == p_above(np.array([]), 0.0) == 1.0
    same = np.full(3, 0.5)
    assert (p_above(same, 0.4), p_above(same, 0.5), p_below(same, 0.6)) == (0.0, 1.0, 0.0)


def test_holm_by_the_example_of_its_definition():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_so_many_seeds_as_are_asked_for_decide_most_of_the_time():
    draw = np.random.default_rng(1)
    seen = np.array([0.2, 0.9, 0.1, 0.8, 0.5])
    needed = seeds_needed(seen, 0.0, CLAIM)
    assert needed is not None
    assert needed > len(seen)
    studies = draw.normal(seen.mean(), seen.std(ddof=1), size=(2000, needed))
    decided = np.mean([p_above(study, 0.0) <= CLAIM for study in studies])
    assert 0.75 < decided < 0.9
    assert seeds_needed(seen - seen.mean(), 0.0, CLAIM) is None


def test_a_technique_pays_within_the_points_and_not_beyond():
    close, far = [-0.2, -0.3, -0.25, -0.2], [-3.0, -3.1, -2.9, -3.0]
    judged = judge("bytes", 1.0, {A: pair(close), B: pair(far), C: pair([-1.0, 0.5, -2.5, 1.0])})
    assert [judged[arm].verdict for arm in (A, B, C)] == ["pays", "does not pay", "undecided"]
    assert judged[C].more is None or judged[C].more > 0
    assert judged[A].ratio is not None
    assert judged[A].ratio.mean == pytest.approx(0.5)


def test_what_is_not_smaller_does_not_pay_however_accurate():
    judged = judge("bytes", 1.0, {A: pair([2.0, 2.1, 2.2, 2.0], bytes_ratio=0.99)})
    assert judged[A].verdict == "does not pay"
    assert judged[A].why == "its file is not smaller"


def test_times_measured_alone_count_in_place_of_the_trials():
    pairs = {A: pair([0.1, 0.0, 0.05, 0.1])}
    slower = {A: np.log([1.1, 1.2, 1.15, 1.1, 1.12])}
    assert judge("latency", 1.0, pairs).get(A).verdict == "pays"  # until it is measured
    assert judge("latency", 1.0, pairs, slower)[A].verdict == "does not pay"


def test_accuracy_is_a_gain_and_not_a_loss_that_is_allowed():
    gains, none = [0.9, 1.1, 1.0, 0.95], [-0.5, -0.6, -0.55, -0.5]
    judged = judge("accuracy", 1.0, {A: pair(gains), B: pair(none)})
    assert (judged[A].verdict, judged[B].verdict) == ("pays", "does not pay")


def test_a_study_of_equal_arms_seldom_claims_that_one_pays(monkeypatch):
    monkeypatch.setattr(bench, "SIMULATED", 150)
    assert bench._share("accuracy", {}, most_seeds=18) <= 0.06
    at_the_margin = dict.fromkeys(bench.ARMS, -1.0)
    assert bench._share("bytes", at_the_margin, most_seeds=18) <= 0.06


def test_a_study_finds_a_point_with_the_seeds_that_it_asks_for(monkeypatch):
    monkeypatch.setattr(bench, "SIMULATED", 60)
    assert bench._share("accuracy", {"a": 1.0}, seeds=5, most_seeds=20) >= 0.8
