"""Decisions: a function of the records so far, and of nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulated import ONE, TWO, curve, decisions, memory_sweep, suggest

from raybench.results.log import Record
from raybench.search.guide import WAVE, WAVES
from raybench.search.simulation.curves import Curve
from raybench.search.simulation.memory_sweep import MemorySweep
from raybench.search.simulation.slots import simulate

BUDGET = 200
SLOTS = 3


def searched(objectives: dict[str, str], sampler: str = "model") -> tuple[list[Record], list[bool]]:
    """All records of a search, and what was decided after each report."""
    sweep, stops = memory_sweep(objectives, sampler=sampler), list[bool]()
    report = sweep.report

    def noted(number: int, epoch: int, metrics: dict[str, Any]) -> bool:
        stops.append(report(number, epoch, metrics))
        return stops[-1]

    sweep.report = noted  # type: ignore[method-assign]
    simulate(sweep, lambda task: curve(task.params), slots=SLOTS, budget=BUDGET)
    return sweep.records, stops


@pytest.mark.parametrize("objectives", [ONE, TWO], ids=["one", "two"])
@pytest.mark.parametrize("sampler", ["model", "tpe"])
def test_every_decision_is_the_same_after_a_restart(objectives, sampler):
    records, stops = searched(objectives, sampler)
    assert any(stops)
    assert not all(stops)
    asked = [place for place, (kind, _, _) in enumerate(records) if kind == "suggested"]
    for place in asked[:: max(1, len(asked) // 12)]:
        again = MemorySweep(
            decisions(objectives, sampler=sampler), suggest, records=records[:place]
        )
        again.ask()
        assert again.records[place][2]["params"] == records[place][2]["params"]
    reported = [place for place, (kind, _, _) in enumerate(records) if kind == "epoch"]
    for order in range(0, len(reported), 5):
        deciding, place = decisions(objectives, sampler=sampler), reported[order]
        for record in records[: place + 1]:
            deciding.take(record)
        content = records[place][2]
        assert deciding.stops(content["number"], content["epoch"]) == stops[order]


@pytest.mark.parametrize("moment", [20, 90, 150])
def test_no_decision_looks_into_the_future(moment):
    """Reports after a moment may be anything: what was decided before is the same."""

    def run(changed: bool) -> list[Record]:
        sweep = memory_sweep(TWO)
        count = 0

        def reports(task: Any) -> Curve:
            return curve(task.params)

        report = sweep.report

        def counted(number: int, epoch: int, metrics: dict[str, Any]) -> bool:
            nonlocal count
            count += 1
            if changed and count > moment:
                metrics = {name: float(np.sin(count) + 2) for name in metrics}
            return report(number, epoch, metrics)

        sweep.report = counted  # type: ignore[method-assign]
        simulate(sweep, reports, slots=SLOTS, budget=BUDGET)
        return sweep.records

    plain, other = run(False), run(True)
    last = [place for place, record in enumerate(plain) if record[0] == "epoch"][moment - 1]
    assert plain[: last + 1] == other[: last + 1]
    assert plain != other


def test_many_slots_are_filled_as_reports_come():
    """Further trials wait for a first report, so that the model and not chance suggests them."""
    sweep = memory_sweep(TWO)
    first = [one for one in (sweep.ask() for _ in range(64)) if one is not None]
    assert len(first) == WAVE
    for one in first:
        sweep.report(one.number, 1, curve(one.params).at(1))
    assert sum(sweep.ask() is not None for _ in range(64)) == int((WAVES - 1) * WAVE)
    random = memory_sweep(TWO, sampler="random")
    assert all(random.ask() for _ in range(64))


def test_a_trial_that_fails_makes_room():
    sweep = memory_sweep(TWO)
    first = [one for one in (sweep.ask() for _ in range(64)) if one is not None]
    for one in first:
        sweep.finish(one.number, "FAILED", "out of memory")
    assert sum(sweep.ask() is not None for _ in range(64)) == WAVE
