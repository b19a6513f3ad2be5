"""The pruning schedule, step by step, against TF-MOT's rules."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybench.techniques import Progress
from raybench.techniques.prune import Prune, constant_sparsity, polynomial_decay
from trainers.pruning import one_shot

sparsities = st.floats(0, 1, exclude_max=True)


def reference_updates(begin: int, end: int, frequency: int, last: int) -> list[int]:
    """Steps up to `last` at which TF-MOT's `_should_prune_in_step` is true, by counting."""
    found, due = [], begin
    for step in range(last + 1):
        if step == due:
            due += frequency
            if end == -1 or step <= end:
                found.append(step)
    return found


class TestTFMOT:
    @given(
        initial=sparsities,
        final=sparsities,
        begin=st.integers(0, 60),
        length=st.integers(1, 120),
        power=st.floats(0.5, 5),
        frequency=st.integers(1, 50),
    )
    def test_polynomial_decay_step_for_step(self, initial, final, begin, length, power, frequency):
        end, last = begin + length, 200
        updates = reference_updates(begin, end, frequency, last)
        for step in range(last + 1):
            actual = polynomial_decay(
                step,
                initial_sparsity=initial,
                final_sparsity=final,
                begin=begin,
                end=end,
                power=power,
                frequency=frequency,
            )
            if step in updates:
                left = (1 - (step - begin) / length) ** power
                assert actual == pytest.approx(initial * left + final * (1 - left), abs=1e-12)
            else:
                assert actual is None

    @given(
        target=sparsities,
        begin=st.integers(0, 60),
        end=st.just(-1) | st.integers(0, 200),
        frequency=st.integers(1, 50),
    )
    def test_constant_sparsity_step_for_step(self, target, begin, end, frequency):
        updates = reference_updates(begin, end, frequency, 200)
        for step in range(201):
            actual = constant_sparsity(
                step, target_sparsity=target, begin=begin, end=end, frequency=frequency
            )
            assert actual == (target if step in updates else None)

    def test_end_minus_one_is_for_ever(self):
        settings = {"target_sparsity": 0.5, "begin": 7, "frequency": 10}
        assert constant_sparsity(7 + 10**9, end=-1, **settings) == 0.5
        assert constant_sparsity(7 + 10**9, end=10**8, **settings) is None

    def test_a_ramp_that_frequency_does_not_divide_never_reaches_the_target(self):
        ramp = {"initial_sparsity": 0.0, "final_sparsity": 0.8, "power": 3.0, "begin": 0}
        said = [polynomial_decay(step, end=10, frequency=4, **ramp) for step in range(100)]
        assert [step for step, value in enumerate(said) if value is not None] == [0, 4, 8]
        assert max(value for value in said if value is not None) < 0.8

    def test_begin_after_the_last_step_never_prunes(self):
        ramp = {"initial_sparsity": 0.2, "final_sparsity": 0.8, "power": 3.0}
        steps = range(100)
        assert {polynomial_decay(s, begin=100, end=200, frequency=1, **ramp) for s in steps} == {
            None
        }
        assert {
            constant_sparsity(s, target_sparsity=0.5, begin=100, end=-1, frequency=1) for s in steps
        } == {None}

    def test_the_drawn_schedule(self):
        """The picture in the module's docstring, once more as numbers."""
        drawn = {2: 0.1, 4: 0.1 + 0.7 * 37 / 64, 6: 0.1 + 0.7 * 7 / 8, 8: 0.1 + 0.7 * 63 / 64}
        drawn |= {10: 0.8}
        for step in range(20):
            actual = polynomial_decay(
                step,
                initial_sparsity=0.1,
                final_sparsity=0.8,
                begin=2,
                end=10,
                power=3.0,
                frequency=2,
            )
            assert actual == (pytest.approx(drawn[step], abs=1e-15) if step in drawn else None)


def plan(prune: Prune, steps: int) -> dict[int, float]:
    """Step -> sparsity of all updates of a run of so many steps."""
    said = {step: prune.sparsity_at(Progress(step, steps)) for step in range(1, steps + 1)}
    return {step: value for step, value in said.items() if value is not None}


class TestPlan:
    @settings(max_examples=300)
    @given(
        steps=st.integers(1, 400),
        begin=st.floats(0, 1, exclude_max=True),
        span=st.floats(1e-3, 1),
        frequency=st.integers(1, 500),
        initial=sparsities,
        final=sparsities,
    )
    def test_the_last_update_of_a_ramp_reaches_the_target(
        self, steps, begin, span, frequency, initial, final
    ):
        prune = Prune(
            final_sparsity=max(initial, final),
            initial_sparsity=min(initial, final),
            begin=begin,
            end=max(min(1.0, begin + span), math.nextafter(begin, 1)),
            frequency=frequency,
        )
        updates = plan(prune, steps)
        assert updates[max(updates)] == max(initial, final)
        rising = list(updates.values())
        assert rising == sorted(rising)

    @given(steps=st.integers(1, 400), begin=st.floats(0, 1), frequency=st.integers(1, 500))
    def test_constant_sparsity_always_prunes(self, steps, begin, frequency):
        prune = Prune(schedule="constant", final_sparsity=0.7, begin=begin, frequency=frequency)
        updates = plan(prune, steps)
        assert set(updates.values()) == {0.7}
        assert min(updates) == max(1, round(begin * steps))

    def test_an_ordinary_run(self):
        prune = Prune(final_sparsity=0.8, begin=0.1, end=0.5, power=1.0, frequency=20)
        assert plan(prune, 200) == pytest.approx(
            {20: 0.0, 40: 0.2, 60: 0.4, 80: 0.6, 100: 0.8}, abs=1e-12
        )

    def test_a_run_shorter_than_one_period_still_prunes(self):
        prune = Prune(final_sparsity=0.8, begin=0.1, end=0.6, frequency=1000)
        assert plan(prune, 10) == {1: 0.0, 10: 0.8}
        assert plan(prune, 1) == {1: 0.8}

    def test_a_ramp_that_begins_with_the_last_step_reaches_the_target_there(self):
        prune = Prune(final_sparsity=0.8, begin=0.95, end=1.0)
        assert plan(prune, 5)[5] == 0.8

    def test_one_shot_prunes_at_the_last_step_alone(self):
        for steps in (1, 7, 100):
            assert list(plan(one_shot, steps)) == [steps]
