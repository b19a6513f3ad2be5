"""`from raybench import …`: the functions for notebooks, and the notebook in the docs."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

import raybench
from raybench import read, train, tune
from raybench.techniques.prune import Prune
from trainers.pruning import base

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebook.ipynb"
TINY = replace(base, subset=0.15, recipe=replace(base.recipe, epochs=1))


def cells() -> list[str]:
    kinds = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in kinds if cell["cell_type"] == "code"]


def space(trial: optuna.Trial):
    return replace(TINY, seed=trial.suggest_int("seed", 0, 9))


def test_train_returns_the_tables_of_its_run(tmp_path):
    experiment = replace(TINY, prune=Prune(final_sparsity=0.5))
    train(TINY, results=tmp_path)
    run = train(experiment, results=tmp_path, store=str(tmp_path / "net.safetensors"))
    assert list(run.trials["number"]) == [1]
    assert list(run.epochs["epoch"]) == [1]
    assert run.trials["prune.final_sparsity"].item() == 0.5
    assert run.trials["sparsity"].item() == pytest.approx(0.5, abs=0.01)
    assert (tmp_path / "net.safetensors").exists()
    assert len(read(str(tmp_path / "pruning-runs")).complete) == 2


def test_a_failed_training_raises_and_leaves_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("raybench.train"), "_reports", failing)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: planted"):
        train(TINY, results=tmp_path)
    (row,) = read(tmp_path / "pruning-runs").trials.itertuples()
    assert (row.status, row.stop_reason) == ("FAILED", "ZeroDivisionError: planted")


def failing(options):
    yield 1, {}
    raise ZeroDivisionError("planted")


def test_a_wrong_keyword_names_itself(tmp_path):
    with pytest.raises(TypeError, match="trails"):
        tune("search_spaces/pruning.py", trails=3)
    with pytest.raises(ValueError, match="needs objectives="):
        tune(space, trials=3)
    with pytest.raises(ValueError, match="no objective 'acuracy'; did you mean 'accuracy'"):
        tune(space, objectives={"acuracy": "max"}, name="mine", results=tmp_path)


@pytest.mark.workers
def test_the_modules_stay_modules_in_every_order_of_imports():
    for order in (
        "import raybench.tune; from raybench import tune",
        "from raybench import tune; import raybench.tune",
    ):
        code = f"{order}; from raybench.tune import Tune; assert callable(tune); tune.Tune is Tune"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.workers
def test_reading_needs_neither_torch_nor_ray():
    code = "import sys; from raybench import read; assert not {'torch', 'ray'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert not hasattr(raybench, "reed")


def test_the_notebook_is_python_and_holds_no_output():
    for text in cells():
        ast.parse(text)
    kinds = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(cell["outputs"] == [] for cell in kinds if cell["cell_type"] == "code")


NOTEBOOK_LIKE = """
import json, linecache, sys
namespace = {"__name__": "__main__"}
for number, text in enumerate(json.loads(sys.argv[1])):
    name = f"cell-{number}"  # a space's source has to be at hand, as in a notebook
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    exec(compile(text, name, "exec"), namespace)
"""


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_notebook_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK_LIKE, json.dumps(cells())],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "results/notebook").trials) == 6
    assert (tmp_path / "results/resnet20-digits-bytes/verdict.parquet").exists()
