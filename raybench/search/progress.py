"""The progress of a running sweep: a live table on a terminal, else a line every 30 s."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from raybench.reports.percent import ACCURACIES, labelled
from raybench.search.sweep import Sweep
from raybench.search.tally import LATEST

LINE_EVERY_S = 30.0
SHOWN = LATEST  # rows of the live table at most
AROUND = 8  # lines of the title, which may wrap, and of the table's frame


def left(sweep: Sweep) -> str:
    """The message after an interruption: what is left to do."""
    spending = sweep.decisions.spending
    if spending.limited:
        seconds = _span(max(0.0, spending.budget_s - spending.spent_s))
        return f"{seconds} of the budget to go; the same command resumes"
    return f"{sweep.unfinished} trials to go; the same command resumes"


class Progress:
    """Draws the sweep when `update` is called, at most twice a second (a line every 30 s)."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._began = time.monotonic()
        self._done_before = sweep.tally.ended
        self._spent_before_s = sweep.decisions.spending.spent_s
        self._next = self._began + LINE_EVERY_S
        self._console = Console(file=sys.stderr)
        self._live: Live | None = None
        self.waiting = ""
        """What the sweep waits for, if no trial can run."""

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def update(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        if self._live is not None:
            self._next = now + 0.5
            self._live.update(self._table(), refresh=True)
        else:
            self._next = now + LINE_EVERY_S
            print(f"raybench: {self.line()}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Prints a line above the table."""
        self._console.print(f"raybench: {text}", markup=False, highlight=False, soft_wrap=True)

    def line(self) -> str:
        """Counts, the best so far and the time left, in one line."""
        tally = self.sweep.tally
        spending = self.sweep.decisions.spending
        if spending.limited:
            parts = [f"{tally.ended} trials"]
            parts.append(f"{_span(spending.spent_s)} of {_span(spending.budget_s)} trained")
        else:
            parts = [f"{tally.ended}/{tally.ended + self.sweep.unfinished} trials"]
        for status in ("RUNNING", "PRUNED", "FAILED"):
            if count := tally.counts[status]:
                parts.append(f"{count} {status.lower()}")
        if tally.best is not None:
            name = next(iter(tally.objectives))
            unit = " %" if name in ACCURACIES else ""
            parts.append(f"best {name} {_short(name, tally.best)}{unit}")
        parts.append(f"{_span(time.monotonic() - self._began)} gone")
        if self.waiting:
            parts.append(self.waiting)
        left = self.seconds_left()
        if left is not None:
            parts.append(f"about {_span(left)} left")
        return ", ".join(parts)

    def seconds_left(self) -> float | None:
        """Estimate from the trials that have ended in this run; None before the first."""
        done = self.sweep.tally.ended - self._done_before
        if not done:
            return None
        gone, spending = time.monotonic() - self._began, self.sweep.decisions.spending
        if spending.limited:
            trained = spending.spent_s - self._spent_before_s
            rest = max(0.0, spending.budget_s - spending.spent_s)
            return gone * rest / trained if trained > 0 else None
        return gone / done * self.sweep.unfinished

    def _table(self) -> Table:
        """The running trials, then those that ended last; the newest first in both."""
        table = Table(title=f"{self.sweep.name}: {self.line()}", title_justify="left")
        objectives = list(self.sweep.space.objectives)
        for column in ("trial", "status", "epoch", *map(labelled, objectives)):
            table.add_column(column, no_wrap=True)
        table.add_column("suggested", overflow="fold")
        tally = self.sweep.tally
        numbers = [*reversed(tally.running), *sorted(tally.latest, reverse=True)]
        # Rich cuts a table that is higher than the terminal, and its title with it.
        room = self._console.height - AROUND if self._live is not None else SHOWN
        rows = [self.sweep.store.trials[n] for n in numbers[: max(1, min(SHOWN, room))]]
        reasons = any(row.get("stop_reason") for row in rows)
        if reasons:
            table.add_column("why it ended", overflow="fold")
        for row in rows:
            values = [_short(name, row.get(name)) for name in objectives]
            epoch = f"{row.get('epoch') or 0}/{row.get('recipe.epochs') or '?'}"
            params = _as_text(row["params"])
            why = [row.get("stop_reason") or ""] if reasons else []
            table.add_row(str(row["number"]), row["status"], epoch, *values, params, *why)
        return table


def _short(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in ACCURACIES:
        return f"{100 * value:.2f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _as_text(params: str) -> str:
    """Parameters as `lr=0.034 model=resnet20`."""
    pairs = json.loads(params).items()
    return " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in pairs)


def _span(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
