"""Real processes of real sweeps are killed at random moments; nothing may be lost, or hang."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from raybench.bench import chaos, steady_space
from raybench.bench.chaos import Chaos
from raybench.bench.victim import Driver, finished

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def assert_nothing_was_lost(found: Chaos) -> None:
    told = {name: getattr(found, name) for name in ("lost", "duplicates", "wrong", "zombies")}
    assert told == dict.fromkeys(told, 0)
    assert found.hangs == 0


def test_a_trials_actor_dies(tmp_path: Path) -> None:
    chaos = Chaos(seed=0)
    chaos.passing(tmp_path, "trial", 2)
    assert_nothing_was_lost(chaos)
    assert len(chaos.recovered["trial"]) == 2
    output = (tmp_path / "driver.log").read_text()
    assert "resumes from its last checkpoint: its worker process died" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    "kinds",
    [("driver_group", "raylet"), pytest.param(("driver", "gcs"), marks=pytest.mark.nightly)],
    ids=" ".join,
)
def test_the_driver_and_ray_itself_die(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    chaos = Chaos(seed=1)
    chaos.ending(tmp_path, 1, kinds)
    assert_nothing_was_lost(chaos)
    assert chaos.kills == dict.fromkeys(kinds, 1)
    output = (tmp_path / "driver.log").read_text()
    process = "raylet" if "raylet" in kinds else "GCS"
    assert f"Ray's {process} is gone;" in output
    assert "Traceback" not in output


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["worker", "stage"])
def test_a_worker_of_a_group_or_a_stage_dies(tmp_path: Path, kind: str) -> None:
    chaos = Chaos(seed=2)
    chaos.passing(tmp_path, kind, 3)
    assert_nothing_was_lost(chaos)
    assert "gloo" not in (tmp_path / "driver.log").read_text().lower()


@pytest.mark.nightly
@pytest.mark.timeout(3 * 3600)
def test_two_hundred_kills() -> None:
    figures = chaos.measure()
    assert figures["kills"] >= 200
    wrong = {name: figures[name] for name in ("lost", "duplicates", "wrong", "zombies", "hangs")}
    assert wrong == dict.fromkeys(wrong, 0)
    assert figures["recover_s"] <= 5


@pytest.mark.nightly
def test_a_driver_that_is_stopped_for_half_a_minute_goes_on(tmp_path: Path) -> None:
    driver = Driver(Path(str(steady_space.__file__)), tmp_path, 12)
    folder, end = tmp_path / "steady_space", time.monotonic() + 120
    while len(finished(folder)) < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
    os.kill(driver.pid, signal.SIGSTOP)
    time.sleep(30)  # that it is so long is what is tested
    os.kill(driver.pid, signal.SIGCONT)
    assert driver.wait(180) == 0
    assert len(finished(folder)) == 12
    assert "gone" not in (tmp_path / "driver.log").read_text().replace(" s gone", "")
