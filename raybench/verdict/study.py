"""Study: the policy as a sweep's proposals, within a budget of seconds.

The sweep starts one trial at a time; the study names the next one while it can end within the
budget. The seconds of earlier runs of the same study are a record of the log, so that a restart
uses only the rest, and a larger budget extends the study.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from optuna.trial import Trial

from raybench.results.core import FINISHED
from raybench.results.log import Record
from raybench.search.sampling import Sampling
from raybench.search.suggestions import Suggestion
from raybench.training import trained
from raybench.verdict.arms import Arms, Run
from raybench.verdict.judgement import Outcome
from raybench.verdict.policy import BASELINE, Arm, Design, State, state

SPENT = "spent"
"""Kind of the log's record of the seconds that a study has taken."""
TEACHER = "teacher.safetensors"
MARGIN = 1.1  # a trial starts if this many times its expected seconds are left


@dataclass
class Clock:
    """The seconds of a study, including those of earlier runs."""

    budget_s: float | None = None
    reserved_s: float = 0.0
    """Seconds of the budget that are reserved for the time after the last trial."""
    before_s: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def spent_s(self) -> float:
        return self.before_s + time.monotonic() - self.began

    def left_s(self) -> float:
        """Seconds for trials; infinite without a budget."""
        if self.budget_s is None:
            return math.inf
        return self.budget_s - self.reserved_s - self.spent_s()


class Study:
    """Proposes the runs that the policy wants.

    Args:
        seconds: expected seconds of a trial of each technique's arm, and of the baseline under the
            name "".
        trials: forecast number of trials, for the progress display.
        folder: the sweep's folder, where the tuned baseline's model becomes the teacher of
            techniques that learn from one.
    """

    remark = ""

    def __init__(
        self,
        design: Design,
        arms: Arms,
        sampling: Sampling,
        clock: Clock,
        seconds: dict[str, float],
        slots: int = 1,
        trials: int = 0,
        folder: Path | None = None,
    ) -> None:
        self.design, self.arms, self.clock = design, arms, clock
        self.history: dict[Run, Outcome | None] = {}
        self.numbers: dict[Run, int] = {}
        """The trial of every run."""
        self.out_of_time = False
        """Whether the policy wanted a run that cannot end within the budget."""
        self.remember: Callable[[float], None] = lambda seconds: None
        """Called with the seconds so far, for the log."""
        self._sampling, self._expected, self._slots = sampling, seconds, slots
        self._trials, self._folder = trials, folder
        self._runs: dict[int, Run] = {}
        self._ended = self.waiting = self._begun = False

    @property
    def over(self) -> bool:
        return self._ended or self.out_of_time

    @property
    def ready(self) -> bool:
        return not self.over and not self.waiting

    @property
    def late(self) -> bool:
        if self.clock.left_s() <= 0:
            self.out_of_time = True
        return self.clock.left_s() <= 0

    @property
    def planned(self) -> int | None:
        """The expected number of trials: those that exist, are wanted now, or are forecast."""
        if self.over:
            return None
        now = self.state()
        known = len(self.history) + len(now.wanted)
        wanted = max(known, self._trials)
        left, each = self.clock.left_s(), self._each_s()
        if math.isfinite(left) and each:
            wanted = min(wanted, len(self.history) + round(self._slots * left / each))
        return max(known if not math.isfinite(left) else len(self.history), wanted)

    def resize(self, slots: int) -> None:
        """Sets the number of trials that may run at once, as nodes come and go."""
        self._slots = max(1, slots)

    def state(self) -> State:
        return state(self.design, self.history)

    def take(self, record: Record) -> None:
        kind, _, content = record
        if kind == SPENT:
            if not self._begun:  # written by an earlier run
                self.clock.before_s = float(content["seconds"])
        elif kind == "suggested":
            suggested = Suggestion(content["number"], content["params"], content["distributions"])
            self._runs[content["number"]] = self.arms.run_of(suggested.external())
        elif kind == "trial" and (run := self._runs.get(content["number"])) is not None:
            self.numbers[run] = content["number"]
            if content.get("status") in FINISHED:
                self.history[run] = _outcome(content)
                self.waiting = False
            else:
                self.history.setdefault(run, None)

    def of(self, number: int) -> Iterator[tuple[Trial, int | None]]:
        self._begun = True
        self.remember(self.clock.spent_s())
        now = self.state()
        if BASELINE in now.chosen:
            self._teach(now.chosen[BASELINE])
        for run in now.wanted:
            if MARGIN * self.seconds(run) > self.clock.left_s():
                self.out_of_time = True
                return
            params = run.params(self.arms.techniques)
            yield self._sampling.ask(number, 0, dict(params)), None
        self.waiting = any(outcome is None for outcome in self.history.values())
        self._ended = not self.waiting

    def _teach(self, baseline: Run) -> None:
        """Copies the tuned baseline's model to where techniques look for their teacher."""
        if self._folder is None or (path := self._folder / TEACHER).exists():
            return
        model = trained.find(f"{self._folder}#{self.numbers[baseline]}")
        partial = path.with_suffix(".partial")
        shutil.copyfile(model, partial)
        partial.replace(path)

    def seconds(self, run: Run) -> float:
        """Expected seconds of a run: the median of its arm's runs, else the measured cost."""
        taken = [
            outcome.wall_s / other.epochs
            for other, outcome in self.history.items()
            if other.arm == run.arm and outcome is not None and math.isfinite(outcome.wall_s)
        ]
        if taken:
            return median(taken) * run.epochs
        return expected_s(self._expected, run.arm) * run.epochs / self.design.epochs

    def _each_s(self) -> float:
        """Mean seconds of the runs so far."""
        walls = [one.wall_s for one in self.history.values() if one and math.isfinite(one.wall_s)]
        return sum(walls) / len(walls) if walls else expected_s(self._expected, ())


def expected_s(seconds: dict[str, float], arm: Arm) -> float:
    """Seconds of a trial of an arm: each of its techniques multiplies those of the baseline."""
    base = seconds[""]
    return base * math.prod(seconds.get(name, base) / base for name in arm)


def combined_of(design: Design) -> int:
    """The largest number of combinations in a study."""
    pairs = min(design.combinations, len(design.together))
    return pairs + (pairs > 1)


def _outcome(row: dict[str, object]) -> Outcome:
    """The outcome in the row of an ended trial."""

    def number(name: str) -> float:
        value = row.get(name)
        return float(value) if isinstance(value, int | float) else math.nan

    names = ("accuracy", "test_accuracy", "model_bytes", "memory_bytes", "s_per_epoch", "wall_s")
    return Outcome(complete=row.get("status") == "COMPLETE", **{n: number(n) for n in names})
