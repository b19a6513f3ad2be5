"""Schedules: the order in which each stage processes the chunks.

In the drawings a cell is a letter and a chunk; time runs to the right. F is a chunk's forward pass,
B its backward pass, which takes two cells. Zero bubble splits B in two: B is the gradient of the
stage's input, for which the stage before waits, and W that of its weights, for which none waits.

Every schedule takes chunks in ascending order, forward and backward (torchgpipe goes backward in
descending order). So each weight sums its gradients in the order of a single process that goes
through the chunks from first to last, and the sums are equal to the last bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["F", "B", "W"]


class Action(NamedTuple):
    """One action of a stage on one chunk."""

    kind: Kind
    chunk: int

    def __str__(self) -> str:
        return f"{self.kind}{self.chunk}"


Actions = Sequence[Sequence[Action]]
"""The actions of each stage, in order: one row per stage, from first to last."""


class Deadlock(ValueError):
    """A stage waits for something that no stage will ever send."""


def gpipe(stages: int, chunks: int) -> list[list[Action]]:
    """All chunks forward, then all chunks backward (Huang et al. 2019, arXiv 1811.06965).

    Three stages, four chunks:

        F0 F1 F2 F3 .. .. .. .. .. .. B0 B0 B1 B1 B2 B2 B3 B3
        .. F0 F1 F2 F3 .. .. .. B0 B0 B1 B1 B2 B2 B3 B3 .. ..
        .. .. F0 F1 F2 F3 B0 B0 B1 B1 B2 B2 B3 B3 .. .. .. ..

    A stage holds the activations of all chunks.
    """
    row = [Action("F", chunk) for chunk in range(chunks)]
    row += [Action("B", chunk) for chunk in range(chunks)]
    return [list(row) for _ in range(stages)]


def one_f_one_b(stages: int, chunks: int) -> list[list[Action]]:
    """Each chunk backward as soon as possible (PipeDream-Flush, Narayanan et al. 2021, 2006.09503).

    Three stages, four chunks:

        F0 F1 F2 .. .. .. .. B0 B0 F3 B1 B1 .. B2 B2 .. B3 B3
        .. F0 F1 .. .. B0 B0 F2 B1 B1 F3 B2 B2 .. B3 B3 .. ..
        .. .. F0 B0 B0 F1 B1 B1 F2 B2 B2 F3 B3 B3 .. .. .. ..

    The bubble is as large as GPipe's, but a stage holds the activations of at most as many
    chunks as there are stages from it to the end.
    """
    table = []
    for stage in range(stages):
        ahead = min(stages - 1 - stage, chunks)
        row = [Action("F", chunk) for chunk in range(ahead)]
        for chunk in range(chunks):
            if chunk + ahead < chunks:
                row.append(Action("F", chunk + ahead))
            row.append(Action("B", chunk))
        table.append(row)
    return table


def zero_bubble(stages: int, chunks: int) -> list[list[Action]]:
    """1F1B with deferred weight gradients: ZB-H1 (Qi et al. 2024, arXiv 2401.10241).

    Three stages, four chunks; B takes one cell here, and W the other:

        F0 F1 F2 .. .. B0 W0 F3 B1 W1 B2 W2 B3 W3
        .. F0 F1 .. B0 F2 B1 W0 F3 B2 W1 B3 W2 W3
        .. .. F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3

    Stage k runs its W k chunks late, so it holds as many chunks as there are stages, like the first
    stage of 1F1B.
    """
    table = []
    for stage, row in enumerate(one_f_one_b(stages, chunks)):
        with_weights = []
        for action in row:
            with_weights.append(action)
            if action.kind == "B" and action.chunk >= stage:
                with_weights.append(Action("W", action.chunk - stage))
        with_weights += [Action("W", chunk) for chunk in range(max(0, chunks - stage), chunks)]
        table.append(with_weights)
    return table


_MAKE: dict[str, Callable[[int, int], list[list[Action]]]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "zero_bubble": zero_bubble,
}
SCHEDULES = tuple(_MAKE)


def actions(name: str, stages: int, chunks: int) -> list[list[Action]]:
    """The schedule of that name, one of `SCHEDULES`: a list of actions per stage.

    Raises:
        ValueError: no such schedule, or less than one stage or chunk.
    """
    if name not in _MAKE:
        raise ValueError(f"no schedule {name!r}; there are {', '.join(SCHEDULES)}")
    for what, number in (("stages", stages), ("chunks", chunks)):
        if number < 1:
            raise ValueError(f"{what} is {number}: it must be 1 or more")
    return _MAKE[name](stages, chunks)


class Span(NamedTuple):
    """When an action starts and ends, in the units of the costs."""

    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """The result of `simulate`: for each stage a tuple of spans, in the order of its actions."""

    stages: tuple[tuple[Span, ...], ...]

    @property
    def makespan(self) -> float:
        """From the first action's start to the last one's end."""
        return max(span.end for row in self.stages for span in row)

    @property
    def busy(self) -> list[float]:
        """Working time of each stage."""
        return [sum(span.end - span.start for span in row) for row in self.stages]

    @property
    def bubble(self) -> float:
        """The share of the stages' total time that is idle."""
        return 1 - sum(self.busy) / (len(self.stages) * self.makespan)

    def drawn(self, unit: float = 1.0) -> str:
        """One line per stage, one cell per unit of time; a cell shows the action at its middle."""
        cells = round(self.makespan / unit)
        width = max(len(str(span.action)) for row in self.stages for span in row)
        lines = []
        for row in self.stages:
            line = ["." * width] * cells
            for span in row:
                for cell in range(cells):
                    if span.start <= (cell + 0.5) * unit < span.end:
                        line[cell] = str(span.action).ljust(width)
            lines.append(" ".join(line).rstrip())
        return "\n".join(lines)


def simulate(
    table: Actions,
    forward: Sequence[float],
    backward: Sequence[float],
    *,
    weight: float = 0.5,
    hop: float = 0.0,
) -> Timeline:
    """The timeline if every stage does its actions in order and waits only where it must.

    `forward` and `backward` are the costs of one chunk on each stage. If a stage has W actions, its
    B costs the share 1 - `weight` of `backward` and its W the rest. `hop` is the time of a message
    between two neighbours. A link carries one message at a time per direction, while the stages go
    on. Receives block, and buffers are unbounded.

    Raises:
        Deadlock: a stage waits forever; the message names the stage and the action.
    """
    done: dict[tuple[int, Action], float] = {}
    arrived: dict[tuple[int, Action], float] = {}
    free: dict[tuple[int, Kind], float] = defaultdict(float)
    clock = [0.0] * len(table)
    spans: list[list[Span]] = [[] for _ in table]
    last = len(table) - 1

    def ready(stage: int, action: Action) -> float | None:
        """When all inputs of the action have arrived; None if that is not yet known."""
        kind, chunk = action
        if kind == "F":
            return 0.0 if stage == 0 else arrived.get((stage, action))
        before = done.get((stage, Action("F" if kind == "B" else "B", chunk)))
        if kind == "W" or stage == last or before is None:
            return before
        return arrived.get((stage, action))

    moved = True
    while moved:
        moved = False
        for stage, row in enumerate(table):
            split = any(action.kind == "W" for action in row)
            while len(spans[stage]) < len(row):
                action = row[len(spans[stage])]
                at = ready(stage, action)
                if at is None:
                    break
                whole = {"F": forward, "B": backward, "W": backward}[action.kind][stage]
                share = {"F": 1.0, "B": 1 - weight * split, "W": weight}[action.kind]
                start = max(clock[stage], at)
                end = clock[stage] = start + whole * share
                spans[stage].append(Span(action, start, end))
                done[stage, action] = end
                to = {"F": stage + 1, "B": stage - 1, "W": -1}[action.kind]
                if 0 <= to <= last:
                    sent = max(end, free[stage, action.kind]) + hop
                    free[stage, action.kind] = arrived[to, action] = sent
                moved = True
    for stage, row in enumerate(table):
        if len(spans[stage]) < len(row):
            raise Deadlock(f"stage {stage} waits forever before {row[len(spans[stage])]}")
    return Timeline(tuple(tuple(row) for row in spans))


def bubble(name: str, stages: int, chunks: int) -> float:
    """Idle share of stages of equal cost, if a backward pass costs two forward passes.

    GPipe and 1F1B: (K-1) / (M+K-1) for K stages and M chunks. ZB-H1: (K-1) / (3M+K-1) for 2K-1
    chunks or more.
    """
    table = actions(name, stages, chunks)
    return simulate(table, [1.0] * stages, [2.0] * stages).bubble
