"""A sweep that records when its trials end, for the engine's benches."""

from __future__ import annotations

import time
from pathlib import Path

from raybench.cluster.execute import execute
from raybench.search.overrides import Overrides
from raybench.search.progress import Progress
from raybench.search.space import Space
from raybench.search.sweep import Sweep


class Timed(Sweep):
    """`ends` are the times at which trials ended, in seconds since 1970."""

    def finish(
        self,
        number: int,
        status: str,
        stop_reason: str | None = None,
        traceback: str | None = None,
    ) -> None:
        super().finish(number, status, stop_reason, traceback)
        self.ends = [*getattr(self, "ends", []), time.time()]


def run(
    folder: Path, space: Space, overrides: Overrides, *, trials: int, workers: int, concurrent: int
) -> Timed:
    """Runs a whole sweep within the current Ray session."""
    sweep = Timed(
        folder, space, trials=trials, overrides=overrides, keep="none", early_stopping=False
    )
    with Progress(sweep) as progress:
        execute(sweep, progress, workers=workers, gpus=0.0, max_concurrent=concurrent)
    sweep.close()
    return sweep
