"""The policy: every arm gets the same, and seeds go where they decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations

import pytest

from raybench.verdict.arms import Run
from raybench.verdict.judgement import Outcome
from raybench.verdict.policy import BASELINE, Design, state

NAMES = ("prune", "quantize", "ema")
DESIGN = Design(
    settings=dict.fromkeys(NAMES, 3),
    together=frozenset(map(frozenset, combinations(NAMES, 2))),
    epochs=6,
)
BYTES = {"prune": 0.6, "quantize": 0.3, "ema": 1.0}  # of one step of the setting
NOISE = (0.0, 0.001, -0.001, 0.0005)  # of a seed, alike for all arms but a little


def outcome(run: Run, **changes) -> Outcome:
    """Best at an octave above the first rate; stronger settings are smaller and less accurate."""
    accuracy = 0.9 - 0.004 * abs(run.lr_step - 2) - 0.001 * sum(n for _, n in run.settings)
    accuracy += NOISE[run.seed % len(NOISE)] + 0.0001 * (run.seed % 2) * len(run.settings)
    size = 1e6
    for name, number in run.settings:
        size *= BYTES[name] ** number
    values = {"accuracy": accuracy, "test_accuracy": accuracy, "model_bytes": size}
    rest = {"memory_bytes": 1e9, "s_per_epoch": 1.0 + 0.5 * ("ema" in run.arm), "wall_s": 8.0}
    return Outcome(complete=True, **{**values, **rest, **changes})


def finished(design: Design, of: Callable[[Run], Outcome] = outcome, at_once: int = 2):
    """The history of a whole study, `at_once` runs at a time, and its last state."""
    history: dict[Run, Outcome | None] = {}
    while wanted := state(design, history).wanted:
        for run in wanted[:at_once]:
            history[run] = of(run)
    return history, state(design, history)


def test_every_arm_has_the_same_trials_of_tuning_and_the_same_seeds():
    history, last = finished(DESIGN)
    tuning = Counter(run.arm for run in history if run.seed == 0)
    assert set(tuning) == set(last.chosen)
    assert set(tuning.values()) == {DESIGN.tuning}
    for run in last.chosen.values():
        seeds = {r.seed for r in history if replace(r, seed=0) == run and r.seed}
        assert seeds >= {1, 2, 3}


def test_the_learning_rate_is_tuned_and_the_strongest_setting_within_the_loss_is_taken():
    _, last = finished(DESIGN)
    assert last.chosen[BASELINE].lr_step == 2
    assert dict(last.chosen["prune",].settings) == {"prune": 3}  # 0.3 points of the one allowed
    _, strict = finished(replace(DESIGN, within=0.1))
    assert dict(strict.chosen["prune",].settings)["prune"] < 3


def test_beside_a_rate_that_did_not_train_the_smallest_of_those_that_are_alike_is_chosen():
    def by_rate(run: Run, above: float) -> Outcome:
        return outcome(run, accuracy={-2: 0.958, 0: 0.965, 2: above}.get(run.lr_step, 0.9))

    def chosen(images: int, above: float) -> int:
        design = replace(DESIGN, tuning=3, validation_images=images)
        return finished(design, partial(by_rate, above=above))[1].chosen[BASELINE].lr_step

    assert chosen(images=144, above=0.56) == -2  # a standard error of 1.5 points
    assert chosen(images=45_000, above=0.56) == 0
    assert chosen(images=144, above=0.95) == 0


def test_three_trials_of_tuning_try_a_milder_setting_where_the_first_loses_too_much():
    def fragile(run: Run) -> Outcome:
        number = dict(run.settings).get("prune", 0)
        return outcome(run, accuracy=0.9 if number < 2 else 0.5)

    design = replace(DESIGN, tuning=3)
    history, last = finished(design, fragile)
    assert dict(last.chosen["prune",].settings) == {"prune": 1}
    assert len([r for r in history if r.arm == ("prune",) and r.seed == 0]) == 3


def test_combinations_are_of_what_may_pay_and_stand_beside_each_other():
    _, last = finished(DESIGN)
    combined = [arm for arm in last.chosen if len(arm) > 1]
    assert combined == [("prune", "quantize")]  # ema makes nothing smaller
    apart = replace(DESIGN, together=frozenset())
    assert all(len(arm) < 2 for arm in finished(apart)[1].chosen)


def test_what_trains_longer_is_also_run_with_as_many_epochs_as_the_baselines_time():
    history, _ = finished(DESIGN)
    shorter = [run for run in history if run.epochs != DESIGN.epochs]
    assert {(run.arm, run.epochs) for run in shorter} == {(("ema",), 4)}
    assert len(shorter) == DESIGN.seeds
    assert not [r for r in finished(replace(DESIGN, equal_time=False))[0] if r.epochs != 6]


def test_noise_in_the_time_of_an_epoch_asks_for_no_run_at_equal_time():
    def noisy(run: Run) -> Outcome:
        slow = run.arm == ("prune",) and run.seed == 1
        return outcome(run, s_per_epoch=1.5 if slow else 1.0)

    history, _ = finished(DESIGN, noisy)
    assert {run.epochs for run in history} == {DESIGN.epochs}


def test_seeds_are_added_to_what_is_undecided_alone():
    def noisy(run: Run) -> Outcome:
        points = {1: 0.002, 2: -0.006, 3: 0.0}.get(run.seed, -0.001)
        shift = points if run.arm == ("prune",) else 0.0
        return outcome(run, test_accuracy=0.9 + shift)

    history, last = finished(replace(DESIGN, most_seeds=12), noisy)
    seeds = {arm: max(r.seed for r in history if r.arm == arm) for arm in last.chosen}
    assert seeds["prune",] > DESIGN.seeds
    assert seeds[BASELINE] == seeds["prune",]
    assert seeds["quantize",] == DESIGN.seeds


def test_an_arm_without_any_model_is_left_out_with_its_reason():
    def failing(run: Run) -> Outcome:
        return Outcome(complete=False) if "prune" in run.arm else outcome(run)

    _, last = finished(DESIGN, failing)
    assert last.without == {("prune",): "no run of its tuning has a model"}
    assert ("quantize",) in last.chosen


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_the_choice_does_not_depend_on_how_many_run_at_once(at_once):
    assert finished(DESIGN, at_once=at_once)[1].chosen == finished(DESIGN)[1].chosen


def test_a_study_that_was_stopped_anywhere_goes_on_alike():
    whole, last = finished(DESIGN)
    for stop in range(0, len(whole), 7):
        history: dict[Run, Outcome | None] = dict(list(whole.items())[:stop])
        while wanted := state(DESIGN, history).wanted:
            history[wanted[0]] = outcome(wanted[0])
        assert state(DESIGN, history).chosen == last.chosen
