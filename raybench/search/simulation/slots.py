"""Slots: a search in simulated time, in which several trials run at once.

    slot 1   ├──①──┼──①──┼──①──┤ stopped ├─④─┼─④─┼ …
    slot 2   ├─②─┼─②─┼─②─┼─②─┤ complete ├───⑤───┼ …
                                          time ──▶

Events come in the order of their times, and those of the same time in the order in which their
epochs began. This is the order of a real run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from raybench.search.simulation.curves import Curve


class Asked(Protocol):
    """A trial to be simulated; a sweep's Task is one."""

    @property
    def number(self) -> int:
        """The trial's number."""


class Engine(Protocol):
    """Decides which trials run and stop; a Sweep is one."""

    def ask(self) -> Any | None:
        """The next trial, or None."""

    def report(self, number: int, epoch: int, metrics: dict[str, Any]) -> bool:
        """Takes an epoch's metrics; returns whether the trial stops here."""

    def finish(self, number: int, status: str, stop_reason: str | None = None) -> None:
        """Ends a trial."""


@dataclass(frozen=True)
class Complete:
    """A trial that reached its last epoch."""

    number: int
    spent: int
    """Epochs of all trials so far."""
    seconds: float
    """Simulated time so far."""
    metrics: dict[str, float]


def simulate(
    engine: Engine,
    curve: Callable[[Any], Curve],
    *,
    slots: int,
    budget: int,
) -> list[Complete]:
    """Runs trials until they have spent the budget of epochs, or the engine has no more.

    Args:
        curve: returns the curve of a trial from the engine.
        budget: epochs of all trials.
    """
    running: list[tuple[float, int, Any, Curve, int]] = []  # end of an epoch, order, trial, …
    complete: list[Complete] = []
    now, spent, order, more = 0.0, 0, 0, True
    while spent < budget:
        while more and len(running) < slots:
            task = engine.ask()
            if task is None:
                more = False
                break
            its_curve = curve(task)
            order += 1
            heapq.heappush(running, (now + its_curve.seconds[0], order, task, its_curve, 1))
        if not running:
            break
        now, _, task, its_curve, epoch = heapq.heappop(running)
        spent += 1
        metrics = its_curve.at(epoch)
        stop = engine.report(task.number, epoch, metrics)
        if epoch == len(its_curve.seconds):
            complete.append(Complete(task.number, spent, now, metrics))
            engine.finish(task.number, "COMPLETE")
        elif stop:
            engine.finish(task.number, "PRUNED", f"after epoch {epoch}")
        else:
            order += 1
            end = now + its_curve.seconds[epoch]
            heapq.heappush(running, (end, order, task, its_curve, epoch + 1))
        more = True  # a report may be what the engine waits for
    return complete
