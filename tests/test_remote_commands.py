"""The commands with results at an address: a sweep on digits that goes on on another machine."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from bucket import Bucket, another_machine
from bucket import bucket as bucket
from bucket import s3 as s3
from small_sweep import FOUR, HEAD, ONE
from small_sweep import tmp_path as tmp_path

import raybench
from raybench import compare, export, report, train, tune
from raybench.experiment import recipe_file
from raybench.results import whole
from raybench.results.remote import copied
from trainers.pruning import base

RUNS = "s3://bucket/runs"
SMALL = ["--data", "digits", "--epochs", "1", "--subset", "0.1", "--keep", "all"]


def tuned(space: Path, trials: int) -> int:
    typed = ["--space", str(space), "--trials", str(trials), "--results", RUNS, *SMALL]
    return tune.run(tune.parse(typed))


@pytest.mark.ray
@pytest.mark.nightly
def test_a_sweep_on_two_machines(bucket: Bucket, tmp_path, monkeypatch, capsys):
    space = tmp_path / "four.py"
    space.write_text(HEAD + ONE + FOUR)
    assert tuned(space, 2) == 0
    before = pd.read_parquet(f"{RUNS}/four/trials").set_index("number").sort_index()
    assert f'pd.read_parquet("{RUNS}/four/trials")' in capsys.readouterr()[0]
    another_machine(monkeypatch, tmp_path / "other")
    assert tuned(space, 3) == 0
    after = pd.read_parquet(f"{RUNS}/four/trials").set_index("number").sort_index()
    assert (after["status"] == "COMPLETE").tolist() == [True] * 3
    pd.testing.assert_frame_equal(after.loc[before.index], before, check_dtype=False)
    assert len(raybench.read(f"{RUNS}/four").trials) == 3
    model = f"{RUNS}/four/models/four-0000.safetensors"
    out = tmp_path / "net.packed"
    assert export.run(export.parse([model, "--out", str(out)])) == 0
    assert out.exists()
    other = tmp_path / "deeper" / "four.py"
    other.parent.mkdir()
    other.write_text(HEAD + ONE + FOUR.replace("0, 1)", "0, 2)"))
    assert tuned(other, 3) == 2
    assert f"raybench.tune: {RUNS}/four holds another sweep" in capsys.readouterr()[1]


@pytest.mark.slow
def test_a_run_and_its_report(bucket: Bucket, tmp_path, monkeypatch, capsys):
    typed = ["pruning", "--data", "digits", "--subset", "0.1", "--recipe.epochs", "1"]
    for number in range(2):
        another_machine(monkeypatch, tmp_path / str(number))
        assert train.run([*typed, "--seed", str(number), "--results", RUNS]) == 0
    assert sorted(pd.read_parquet(f"{RUNS}/pruning-runs/trials")["number"]) == [0, 1]
    assert report.run(report.parse([f"{RUNS}/pruning-runs"])) == 0
    assert "2 trials, 2 complete" in capsys.readouterr()[0]
    assert report.run(report.parse([RUNS])) == 0
    assert f"The sweeps in {RUNS}" in capsys.readouterr()[0]
    assert report.run(report.parse([f"{RUNS}/none"])) == 2
    assert f"{RUNS}/none holds no results" in capsys.readouterr()[1]


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_a_study_is_told_again_on_another_machine(bucket: Bucket, tmp_path, monkeypatch, capsys):
    typed = ["--techniques", "prune", "--epochs", "2", "--subset", "0.3", "--tuning", "2"]
    typed += ["--seeds", "2", "--name", "small", "--within", "100", "--results", RUNS]
    assert compare.run(compare.parse(typed)) == 0
    first = capsys.readouterr()[0]
    assert "prune pays" in first
    files = {"verdict.parquet", "verdict.json", "recipe.json"}
    assert {f"small/{name}" for name in files} <= set(bucket.keys())
    trials = pd.read_parquet(f"{RUNS}/small/trials")
    another_machine(monkeypatch, tmp_path / "other")
    assert compare.run(compare.parse(typed)) == 0
    assert "prune pays" in capsys.readouterr()[0]
    assert sorted(pd.read_parquet(f"{RUNS}/small/trials")["key"]) == sorted(trials["key"])
    another_machine(monkeypatch, tmp_path / "third")
    assert train.run(["--recipe-file", f"{RUNS}/small/recipe.json", "--results", RUNS]) == 0
    verdict = json.loads(bucket.read("runs/small/verdict.json"))
    rerun = pd.read_parquet(f"{RUNS}/which_pays-runs/trials").iloc[0]
    assert rerun["test_accuracy"] == pytest.approx(verdict["told"]["test_accuracy"])


def test_a_recipe_at_an_address(bucket: Bucket, tmp_path):
    recipe_file.write(tmp_path / "recipe.json", base, {})
    bucket.write("runs/study/recipe.json", (tmp_path / "recipe.json").read_bytes())
    assert recipe_file.read(f"{RUNS}/study/recipe.json") == base
    with pytest.raises(ValueError, match="there is no such object"):
        recipe_file.read(f"{RUNS}/study/other.json")


def test_a_file_that_is_being_written_is_not_copied(tmp_path, monkeypatch):
    seen: list[str] = []
    replace = Path.replace

    def look(partial: Path, target: Path) -> Path:
        seen.extend(copied.scan(tmp_path))
        return replace(partial, target)

    monkeypatch.setattr(Path, "replace", look)
    whole.write(tmp_path / "verdict.json", "{}")
    whole.copy(tmp_path / "verdict.json", tmp_path / "recommended.packed")
    assert seen == ["verdict.json"]
    assert copied.scan(tmp_path).keys() == {"verdict.json", "recommended.packed"}
