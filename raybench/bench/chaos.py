"""Kills a sweep's processes at random times: what is lost, and how soon does the sweep resume?

    driver_group  the driver and its process group       trial   the actor of a trial
    driver        the driver alone                       worker  one of a group's two workers
    raylet, gcs   Ray's own processes, under the driver  stage   one of a pipeline's two stages

The first four end the command, which is then started again. The others only delay the sweep.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import pandas as pd

from raybench.bench import staged_space, steady, steady_space
from raybench.bench.victim import Driver, finished, retried

ENDING = ("driver_group", "driver", "raylet", "gcs")
PASSING = {
    "trial": ("ray::ResourceTrainable.train", ()),
    "worker": ("ray::RayTrainWorker", ("--workers", "2")),
    "stage": ("ray::StageActor", ()),
}
EACH = 29
ENDS_S = 15.0  # deadline for the command to end after Ray has died
MOVES_S = 120.0  # deadline for a sweep to add another row
LEAVES_S = 5.0  # deadline for all of Ray's processes to end after the driver

claims = {
    "lost": "0",
    "duplicates": "0",
    "wrong": "0",
    "zombies": "0",
    "hangs": "0",
    "recover_s": "at most 5",
}


class Chaos:
    """Counts of failures, over all kinds of kills."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.kills: dict[str, int] = {}
        self.recovered: dict[str, list[float]] = {}
        self.ended: dict[str, list[float]] = {}
        self.lost = self.duplicates = self.wrong = self.zombies = self.hangs = 0

    def ending(self, scratch: Path, each: int, kinds: Sequence[str] = ENDING) -> None:
        """Kills that end the command: each kind in turn, on one sweep."""
        folder, rows = scratch / "steady_space", dict[int, pd.Series]()
        for number in range(each * len(kinds)):
            kind = kinds[number % len(kinds)]
            driver = Driver(Path(str(steady_space.__file__)), scratch, trials=10_000)
            if number % 5 == 4 and kind.startswith("driver"):  # kill it while it starts
                time.sleep(self.draw.uniform(0.5, 6.0))
            else:
                self._moves(driver, folder, rows)
                time.sleep(self.draw.uniform(0.0, 1.5))
            if kind == "driver_group":
                driver.kill_group()
            elif kind == "driver":
                driver.kill(driver.pid)
            else:
                driver.kill(driver.one_of("raylet" if kind == "raylet" else "gcs_server"))
            began = time.monotonic()
            code = driver.wait(ENDS_S)
            self._count(kind)
            self.ended.setdefault(kind, []).append(time.monotonic() - began)
            if code is None or (kind in ("raylet", "gcs") and code != 130):
                self.hangs += 1
            self._ends(driver)
            rows = self._compared(folder, rows)
        self._to_the_end(Path(str(steady_space.__file__)), scratch, len(rows) + 3, rows)
        self._check_steady(folder)

    def passing(self, scratch: Path, kind: str, each: int) -> None:
        """Kills that the driver survives."""
        title, arguments = PASSING[kind]
        space = Path(str((staged_space if kind == "stage" else steady_space).__file__))
        folder = scratch / space.stem
        driver = Driver(space, scratch, 10_000, *arguments)
        rows: dict[int, pd.Series] = {}
        for _ in range(each):
            self._moves(driver, folder, rows)
            time.sleep(self.draw.uniform(0.0, 3.0))
            before = retried(folder, kind)
            killed = time.monotonic()
            while not driver.kill(driver.one_of(title, self.draw)):
                time.sleep(0.05)  # no such process between two trials
                killed = time.monotonic()
            self._count(kind)
            if self._until(partial(_grown, folder, kind, before), driver):
                self.recovered.setdefault(kind, []).append(time.monotonic() - killed)
            rows = self._compared(folder, rows)
        driver.kill(driver.pid, signal.SIGINT)
        if driver.wait(MOVES_S) != 130:
            self.hangs += 1
        self._ends(driver)
        rows = self._compared(folder, rows)
        self._to_the_end(space, scratch, len(rows) + 2, rows, *arguments)
        if kind == "stage":
            self._check_staged(space, scratch)
        else:
            self._check_steady(folder)

    # --- Counts ---------------------------------------------------------------------------------

    def _count(self, kind: str) -> None:
        self.kills[kind] = self.kills.get(kind, 0) + 1

    def _until(self, true: Callable[[], bool], driver: Driver) -> bool:
        end = time.monotonic() + MOVES_S
        while time.monotonic() < end and driver.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                if true():
                    return True
            time.sleep(0.05)
        self.hangs += 1
        return False

    def _moves(self, driver: Driver, folder: Path, rows: dict[int, pd.Series]) -> None:
        self._until(lambda: len(finished(folder)) > len(rows), driver)

    def _ends(self, driver: Driver) -> None:
        """Counts processes that outlive their driver, and kills them."""
        end = time.monotonic() + LEAVES_S
        while (left := driver.left()) and time.monotonic() < end:
            time.sleep(0.1)
        self.zombies += len(left)
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _compared(self, folder: Path, earlier: dict[int, pd.Series]) -> dict[int, pd.Series]:
        """The trials finished so far; counts earlier ones that are missing or changed."""
        now = finished(folder)
        for number, row in earlier.items():
            if number not in now:
                self.lost += 1
            elif not now[number].equals(row):
                self.wrong += 1
        return now

    def _to_the_end(
        self, space: Path, scratch: Path, trials: int, rows: dict[int, pd.Series], *more: str
    ) -> None:
        driver = Driver(space, scratch, trials, *more)
        if driver.wait(3 * MOVES_S) != 0:
            self.hangs += 1
        self._ends(driver)
        self._compared(scratch / space.stem, rows)

    def _check_steady(self, folder: Path) -> None:
        trials, epochs = pd.read_parquet(folder / "trials"), pd.read_parquet(folder / "epochs")
        self.duplicates += int(
            trials["key"].duplicated().sum() + trials["number"].duplicated().sum()
        )
        self.duplicates += int(epochs.duplicated(["number", "epoch"]).sum())
        keys = trials.set_index("number")["key"]
        for row in trials.itertuples():
            right = row.status == "COMPLETE" and row.accuracy == steady.accuracy(row.key, 1.0)
            of_trial = epochs[epochs["number"] == row.number]["epoch"]
            self.wrong += not (right and sorted(of_trial) == list(range(1, 9)))
        for row in epochs.itertuples():
            self.wrong += row.accuracy != steady.accuracy(keys[row.number], row.epoch / 8)

    def _check_staged(self, space: Path, scratch: Path) -> None:
        """Checks that the same trials without kills have the same losses."""
        disturbed = pd.read_parquet(scratch / space.stem / "trials").set_index("key")
        calm = scratch / "calm"
        driver = Driver(space, calm, 3)
        if driver.wait(3 * MOVES_S) != 0:
            self.hangs += 1
        for row in pd.read_parquet(calm / space.stem / "trials").itertuples():
            self.wrong += bool(row.loss != disturbed.loc[row.key, "loss"])
        self.duplicates += int(disturbed.index.duplicated().sum())


def _grown(folder: Path, kind: str, before: int) -> bool:
    return retried(folder, kind) > before


def measure(each: int = EACH, seed: int = 0) -> dict[str, float]:
    """Kills `each` times per kind.

    `recover_s` is the median time from the SIGKILL of a trial's actor to the trial's next report;
    `recover_s_KIND` is the same for each kind.
    """
    chaos = Chaos(seed)
    with tempfile.TemporaryDirectory() as scratch:
        for kind in PASSING:
            chaos.passing(Path(scratch) / kind, kind, each)
        chaos.ending(Path(scratch) / "ending", each)
    figures: dict[str, float] = {
        "kills": sum(chaos.kills.values()),
        "lost": chaos.lost,
        "duplicates": chaos.duplicates,
        "wrong": chaos.wrong,
        "zombies": chaos.zombies,
        "hangs": chaos.hangs,
        "recover_s": median(chaos.recovered.get("trial", [float("inf")])),
    }
    for kind, times in chaos.recovered.items():
        figures |= {f"recover_s_{kind}": median(times), f"recover_s_{kind}_max": max(times)}
    for kind, times in chaos.ended.items():
        figures[f"ends_s_{kind}_max"] = max(times)
    return figures | {f"kills_{kind}": count for kind, count in chaos.kills.items()}
