"""The engine without Ray: its time per trial after 500 and after 5,000 trials."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from raybench.bench import scale_space
from raybench.search.overrides import Overrides
from raybench.search.space import Space, load
from raybench.search.sweep import Sweep
from raybench.search.task import Task
from raybench.training import measure as measured

TRIALS = 5000
EARLY = 500  # the last trials are compared with those before this number
AROUND = 200
CONCURRENT = 2
EPOCHS = 9

claims = {
    "scale_ratio_1": "at most 1.3",
    "scale_ratio_2": "at most 1.3",
    "engine_ms": "at most 30",
    "reopen_s": "at most 3",
    "report_s": "at most 3",
    "report_html_s": "at most 6",
}


def measure(trials: int = TRIALS, early: int = EARLY, around: int = AROUND) -> dict[str, float]:
    """Milliseconds per trial (ask, nine reports, finish) with one and two objectives.

    `reopen_s` is the time to open the sweep. `reopen_command_s` and the times of the reports are
    for whole commands with their imports, on the sweep with two objectives.
    """
    figures: dict[str, float] = {}
    two = load(Path(str(scale_space.__file__)), Overrides())
    one = replace(two, objectives={"accuracy": "max"})
    with tempfile.TemporaryDirectory() as scratch:
        for name, space in (("1", one), ("2", two)):
            folder = Path(scratch) / name / "scale_space"
            late = _driven(folder, space, trials)
            times = list(islice(late, trials - around))
            small = _driven(Path(scratch) / name / "small", space, early)
            deque(islice(small, early - around), maxlen=0)
            # Interleaved, because the machine's speed varies.
            pairs = list(zip(small, late, strict=True))
            times += [after for _, after in pairs]
            before, after = (median(side) for side in zip(*pairs, strict=True))
            figures |= {
                f"scale_ratio_{name}": after / before,
                f"early_ms_{name}": 1000 * before,
                f"late_ms_{name}": 1000 * after,
                f"mean_ms_{name}": 1000 * sum(times) / len(times),
            }
            began = time.perf_counter()
            Sweep(folder, space, trials=trials, overrides=Overrides()).close()
            figures[f"reopen_s_{name}"] = time.perf_counter() - began
        figures["engine_ms"] = max(figures["mean_ms_1"], figures["mean_ms_2"])
        space_file, results = str(scale_space.__file__), str(folder.parent)
        tune = ["tune", "--space", space_file, "--results", results, "--trials", str(trials)]
        figures["reopen_s"] = max(figures["reopen_s_1"], figures["reopen_s_2"])
        figures["reopen_command_s"] = _command(*tune)
        figures["report_s"] = _command("report", str(folder))
        page = str(Path(scratch) / "page.html")
        figures["report_html_s"] = _command("report", str(folder), "--html", page)
    return {**figures, "trials": trials}


def _driven(folder: Path, space: Space, trials: int) -> Iterator[float]:
    """Seconds of each trial, in the order in which they end.

    The decision to stop is made but ignored, so that all trials do the same work.
    """
    sweep = Sweep(folder, space, trials=trials, overrides=Overrides())
    machine = {**measured.machine(), **measured.provenance(), "threads": 1, "queue_s": 0.0}
    spent: dict[int, float] = {}
    running: list[tuple[Task, Iterator[dict[str, Any]]]] = []
    while True:
        while len(running) < CONCURRENT:
            began = time.perf_counter()
            task = sweep.ask()
            if task is None:
                break
            sweep.note(task.number, **machine)
            spent[task.number] = time.perf_counter() - began
            running.append((task, _metrics(task)))
        if not running:
            break
        task, reports = running.pop(0)
        metrics = next(reports)
        epoch = int(metrics.pop("epoch"))
        began = time.perf_counter()
        sweep.report(task.number, epoch, metrics)
        if epoch == EPOCHS:
            sweep.finish(task.number, "COMPLETE")
        spent[task.number] += time.perf_counter() - began
        if epoch == EPOCHS:
            yield spent.pop(task.number)
        else:
            running.append((task, reports))
    sweep.close()


def _metrics(task: Task) -> Iterator[dict[str, Any]]:
    """As many metrics as a training reports; early values predict the last ones."""
    draw = random.Random(task.experiment.key())
    best, size = draw.random(), draw.randrange(10_000, 1_000_000)
    for epoch in range(1, EPOCHS + 1):
        accuracy = best * epoch / (epoch + 1)
        times = {name: draw.random() for name in ("train_s", "eval_s", "wall_s", "s_per_epoch")}
        sizes = dict.fromkeys(("model_bytes", "parameters", "flops", "peak_memory_bytes"), size)
        losses = dict.fromkeys(("loss", "validation_loss", "lr", "s_per_batch"), 1 - accuracy)
        yield {"epoch": epoch, "accuracy": accuracy, **times, **sizes, **losses}


def _command(name: str, *arguments: str) -> float:
    """Seconds of a whole command, including imports."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", f"raybench.{name}", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began
