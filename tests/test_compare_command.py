"""`raybench.compare` as a user types it: mistakes in one line, the plan, and the whole command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from raybench import artefact, compare, train
from raybench.experiment import recipe_file
from raybench.verdict.constraints import parsed

ROOT = Path(__file__).parent.parent
SMALL = ["--techniques", "prune", "--epochs", "2", "--subset", "0.3", "--tuning", "2"]
SMALL += ["--seeds", "2", "--name", "small"]
WHOLE_S = 600  # deadline of a whole study under load


def ran(results: Path, *arguments: str) -> int:
    return compare.run(compare.parse(["--results", str(results), *arguments]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--goal", "size"], "no goal 'size'; there are accuracy, bytes"),
        (["--goal", "laency"], "did you mean 'latency'?"),
        (["--budget", "soon"], "a time such as 45m, 2h or 1h30m"),
        (["--within", "-1"], "--within is -1.0: points of accuracy, 0 or more"),
        (["--constraint", "fast"], 'as "latency_ms <= 2"'),
        (["--constraint", "latency <= 2"], "did you mean 'latency_ms'?"),
        (["--techniques", "pruning"], "did you mean 'prune'?"),
        (["--techniques", "monarch"], "no technique fits resnet20: monarch"),
        (["--model", "resnet21"], "resnet2"),
        (["--data", "nowhere"], "nowhere"),
        (["--seeds", "1"], "--seeds is 1: 2 or more"),
        (["--most-seeds", "2"], "--most-seeds is 2: 4 or more"),
        (["--tuning", "0"], "--tuning is 0: 1 or more"),
        (["--subset", "0.001"], "take a smaller batch or a larger subset"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, said, tmp_path, capsys):
    assert ran(tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("raybench.compare: ")
    assert error.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_a_constraint_is_a_figure_a_sign_and_a_bound():
    latency = parsed("latency_ms<=2.5")
    assert latency.holds({"latency_ms": 2.5})
    assert not latency.holds({"latency_ms": 2.6})
    assert not latency.holds({"latency_ms": None})  # what was not measured meets nothing
    assert latency.excess({"latency_ms": 5.0}) == pytest.approx(1.0)
    assert str(latency) == "latency_ms <= 2.5"


@pytest.mark.workers
def test_the_plan_says_what_a_study_takes_and_starts_nothing(tmp_path, capsys):
    assert ran(tmp_path, *SMALL, "--plan", "--price-per-hour", "2.5") == 0
    output = capsys.readouterr().out
    for part in ("baseline", "prune", "in all", "hours", "memory, GB", "disk, MB", "cost"):
        assert part in output
    assert max(map(len, output.splitlines())) <= 80
    assert not (tmp_path / "small").exists()


@pytest.mark.workers
def test_a_budget_under_the_smallest_study_says_which_that_is(tmp_path, capsys):
    assert ran(tmp_path, *SMALL, "--budget", "20s") == 2
    error = capsys.readouterr().err
    assert "--budget 20 s is too short: the smallest study" in error
    assert "2 seeds each, takes" in error


@pytest.mark.ray
@pytest.mark.timeout(2 * WHOLE_S)
def test_a_study_is_killed_goes_on_and_recommends_files_that_keep_their_word(tmp_path, capsys):
    command = [sys.executable, "-m", "raybench.compare", "--results", str(tmp_path), *SMALL]
    command += ["--within", "100"]  # whatever is smaller pays
    folder = tmp_path / "small"
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    end = time.monotonic() + WHOLE_S
    while not [*folder.glob("models/*.json")]:  # of a trial that has ended
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path.stem for path in folder.glob("models/*.json")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WHOLE_S)
    assert done.returncode == 0, done.stderr
    assert "prune pays: 0." in done.stdout
    assert "(as reported)" in done.stdout

    verdict = pd.read_parquet(folder / "verdict.parquet").set_index("arm")
    assert dict(verdict["verdict"]) == {"baseline": "baseline", "prune": "pays"}
    assert verdict.loc["prune", "bytes_ratio_high"] < 0.9
    assert verdict.loc["prune", "train_time_ratio"] > 0
    trials = pd.read_parquet(folder / "trials").set_index("trial")
    assert set(trials["status"]) == {"COMPLETE"}
    assert before <= set(trials.index)
    assert not trials["key"].duplicated().any()
    told = json.loads((folder / "verdict.json").read_text())
    assert told["kept"]
    assert told["fresh"]["test_accuracy"] == pytest.approx(told["told"]["test_accuracy"])

    recipe = recipe_file.read(folder / "recipe.json")
    assert recipe.prune is not None
    assert recipe.key() == trials.loc[told["told"]["trial"], "key"]
    model = next(p for p in folder.glob("recommended.*") if p.suffix != ".onnx")
    assert artefact.about(model).experiment == recipe
    rerun = ["--recipe-file", str(folder / "recipe.json"), "--results", str(tmp_path)]
    assert train.run(rerun) == 0
    row = pd.read_parquet(tmp_path / "which_pays-runs" / "trials").iloc[0]
    assert row["key"] == recipe.key()
    assert row["test_accuracy"] == pytest.approx(told["told"]["test_accuracy"])
