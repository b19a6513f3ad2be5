"""The commands as a user runs them, on a Ray of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from raybench import artefact

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent
DEADLINE_S = 300.0

TROUBLED = '''
"""A trial that diverges, one that raises, one whose process dies, one that runs out of memory."""
from raybench.experiment import Experiment

objectives = {"accuracy": "max"}
enqueue = [{"seed": seed} for seed in range(5)]


def space(trial):
    seed = trial.suggest_int("seed", 0, 4)
    return Experiment(family="troubled.trainer", model="resnet20", seed=seed)
'''
TRAINER = """
import os

from raybench.training.loop import Diverged, Epoch

columns = {}


def train(experiment, *, resume=None, store=None):
    for number in range(1, 4):
        yield Epoch(number, 3, {"accuracy": 0.1 * number, "loss": 1.0}, lambda path: None)
        match experiment.seed:
            case 0:
                raise Diverged("the loss is nan at step 1")
            case 1:
                raise RuntimeError("no such luck\\nand a second line")
            case 2:
                os._exit(1)
            case 3:
                raise MemoryError
"""


def command(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"raybench.{name}", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def test_sweep_on_digits_then_report(tmp_path: Path) -> None:
    """The shipped space on real images: rows, models that load, the report and its HTML."""
    swept = command(
        "tune",
        *("--space", "search_spaces/pruning.py", "--trials", "3", "--epochs", "2"),
        *("--subset", "0.2", "--keep", "all", "--results", str(tmp_path)),
    )
    assert swept.returncode == 0, swept.stderr
    folder = tmp_path / "pruning"
    trials = pd.read_parquet(folder / "trials").set_index("number")
    complete = trials[trials["status"] == "COMPLETE"]
    assert set(trials["status"]) <= {"COMPLETE", "PRUNED"}
    assert len(trials) == 3
    assert len(complete) >= 1
    for _, row in complete.iterrows():
        path = folder / "models" / f"{row['trial']}.safetensors"
        assert path.stat().st_size == row["model_bytes"]
        weights = [w for n, w in artefact.load(path).named_parameters() if w.ndim > 1]
        zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
        if pd.isna(row["prune.final_sparsity"]):  # the dense baseline
            assert zeros == 0
            continue
        assert zeros == pytest.approx(row["sparsity"])
        # Rounding to few bits makes some of the smallest weights zero as well.
        more = 0.0 if pd.isna(row["quantize.bits"]) else 0.1
        assert (
            row["prune.final_sparsity"] - 1e-3 < zeros < row["prune.final_sparsity"] + 1e-3 + more
        )
    for expected in ("Pareto front", "trials.parquet", "pd.read_parquet"):
        assert expected in swept.stdout
    assert "warn" not in swept.stderr.lower()

    page = tmp_path / "report.html"
    reported = command("report", str(folder), "--html", str(page))
    assert reported.returncode == 0, reported.stderr
    text = page.read_text()
    assert all(f'id="{plot}-0"' in text for plot in ("front", "curves", "parallel"))
    # Offline: the page forbids requests, and no tag makes one. Plotly's own links fetch nothing.
    assert "default-src 'none'" in text
    assert not re.findall(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="https?:', text)


def test_failures_are_rows_and_the_sweep_goes_on(tmp_path: Path) -> None:
    (tmp_path / "space.py").write_text(TROUBLED)
    (tmp_path / "troubled").mkdir()
    (tmp_path / "troubled" / "__init__.py").touch()
    (tmp_path / "troubled" / "trainer.py").write_text(TRAINER)
    swept = command(
        "tune",
        *("--space", str(tmp_path / "space.py"), "--trials", "5", "--stopping", "none"),
        *("--results", str(tmp_path / "results")),
        PYTHONPATH=str(tmp_path),
    )
    assert swept.returncode == 0, swept.stderr
    trials = pd.read_parquet(tmp_path / "results" / "space" / "trials").set_index("seed")
    assert trials["status"].to_dict() == {
        0: "FAILED",
        1: "FAILED",
        2: "FAILED",
        3: "FAILED",
        4: "COMPLETE",
    }
    reasons = trials["stop_reason"].to_dict()
    assert reasons[0] == "diverged"
    assert reasons[1] == "RuntimeError: no such luck"
    assert reasons[2] == "lost 4 times, the last time: its worker process died"
    assert trials.loc[2, "retries"] == 3
    assert reasons[3] == "out_of_memory"
    assert (trials["epoch"] >= 1).all()  # what a failed trial had reported is kept


@pytest.mark.nightly  # test_ray_strategies has a sweep of two workers
def test_two_workers_in_a_sweep_and_alone(tmp_path: Path) -> None:
    """Worker groups are kept from trial to trial, early stops included, and end with the sweep."""
    small = ("--data", "digits", "--subset", "0.2")
    swept = command(
        "tune",
        *("--space", "search_spaces/pruning.py", "--workers", "2", "--trials", "4"),
        *("--epochs", "2", *small, "--results", str(tmp_path)),
    )
    assert swept.returncode == 0, swept.stderr
    trials = pd.read_parquet(tmp_path / "pruning" / "trials")
    assert set(trials["status"]) <= {"COMPLETE", "PRUNED"}
    assert (trials["parallel.workers"] == 2).all()
    assert trials["queue_s"].iloc[1:].max() < 10  # a TorchTrainer of its own would take 20 s
    trained = command(
        "train",
        *("pruning", "--workers", "2", "--recipe.epochs", "1", *small),
        *("--prune.final-sparsity", "0.7", "--results", str(tmp_path)),
        *("--store", str(tmp_path / "m.safetensors")),
    )
    assert trained.returncode == 0, trained.stderr
    row = pd.read_parquet(tmp_path / "pruning-runs" / "trials").iloc[0]
    assert row["status"] == "COMPLETE"
    assert row["parallel.workers"] == 2
    assert row["sparsity"] == pytest.approx(0.7, abs=1e-3)
    assert (tmp_path / "m.safetensors").stat().st_size == row["model_bytes"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--space", "search_spaces/prunning.py"), "did you mean 'search_spaces/pruning.py'"),
        (("--space", "search_spaces/pruning.py", "--trials", "0"), "--trials is 0"),
        (("--space", "search_spaces/pruning.py", "--data", "cifar1"), "did you mean 'cifar10'"),
        (("--space", "search_spaces/pruning.py", "--workers", "64"), "does not fit"),
        (("--space", "search_spaces/pruning.py", "--max-concurrent", "0"), "--max-concurrent is 0"),
        (("--space", "search_spaces/pruning.py", "--results", "/proc/1/nope"), "/proc/1/nope"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    results = () if "--results" in arguments else ("--results", str(tmp_path))
    refused = command("tune", *arguments, *results)
    assert refused.returncode == 2, refused.stderr
    lines = [line for line in refused.stderr.splitlines() if not line.startswith("raybench: ")]
    assert len(lines) == 1, refused.stderr
    assert said in lines[0]
    assert not list(tmp_path.glob("*/models/*"))


@pytest.mark.parametrize(
    "sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)]
)
def test_interrupt_leaves_130_and_the_command_goes_on(tmp_path: Path, sent: signal.Signals) -> None:
    """Ctrl-C ends the sweep in order; the next run has the same trials and finishes them."""
    arguments = ["--space", "raybench/bench/trivial_space.py", "--trials", "300"]
    arguments += ["--results", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "raybench.tune", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    tail = tmp_path / "trivial_space" / ".state" / "log"
    deadline = time.monotonic() + DEADLINE_S
    while not tail.exists() or tail.stat().st_size < 100_000:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, errors
    assert "the same command resumes" in errors
    assert "Traceback" not in errors
    assert "*** SIG" not in errors  # Ray's own account of a signal
    table = tmp_path / "trivial_space" / "trials"
    before = pd.read_parquet(table, dtype_backend="numpy_nullable").set_index("number")
    ended = before[before["status"] != "RUNNING"]
    assert 0 < len(ended) < 300
    assert command("tune", *arguments).returncode == 0
    after = pd.read_parquet(table, dtype_backend="numpy_nullable").set_index("number")
    assert len(after) == 300
    pd.testing.assert_frame_equal(after.loc[ended.index], ended)


def test_full_disk_stops_the_sweep_and_keeps_what_was_there(tmp_path: Path) -> None:
    """Files may not grow past a limit: the driver says so, and the last tables stay readable."""
    arguments = ["--space", "raybench/bench/trivial_space.py", "--results", str(tmp_path)]
    assert command("tune", *arguments, "--trials", "20").returncode == 0
    before = pd.read_parquet(tmp_path / "trivial_space" / "trials")
    log = tmp_path / "trivial_space" / ".state" / "log"
    limit = log.stat().st_size + 20_000
    stopped = subprocess.run(
        [sys.executable, "-c", LIMITED.format(limit=limit), *arguments, "--trials", "200"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert stopped.returncode == 2, stopped.stderr
    assert "File too large" in stopped.stderr
    now = pd.read_parquet(tmp_path / "trivial_space" / "trials")
    assert set(before["key"]) <= set(now[now["status"] == "COMPLETE"]["key"])
    assert command("tune", *arguments, "--trials", "30").returncode == 0  # space was made


# A disk of few bytes, for the log alone: every write to it beyond the limit fails.
LIMITED = """
import sys
from raybench.results.log import Log
from raybench.tune import Tune, run
import tyro

append = Log.append

def limited(self, *record, **options):
    if self._size > {limit}:
        raise OSError(27, "File too large", "log")
    return append(self, *record, **options)

Log.append = limited
sys.exit(run(tyro.cli(Tune)))
"""
