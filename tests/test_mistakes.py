"""Mistakes on command lines: exit code 2, and one line that names the mistake and what to do."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import write_folder
from mistakes import MISTAKES
from PIL import Image
from safetensors.torch import save_file
from shipped_files import INPUTS, stored_models
from small_sweep import CONDITIONAL, HEAD, ONE, PLAIN

from raybench import artefact, compare, data, export, predict, report, submit, train, tune
from raybench.__main__ import main
from raybench.bench import __main__ as bench
from raybench.cluster import session
from raybench.doctor import __main__ as doctor
from raybench.reports import technique_matrix
from raybench.search import space as spaces
from raybench.search.sweep import Sweep
from trainers.pruning import base

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
RUNS = {
    "tune": lambda typed: tune.run(tune.parse(typed)),
    "train": train.run,
    "compare": lambda typed: compare.run(compare.parse(typed)),
    "submit": submit.run,
    "report": lambda typed: report.run(report.parse(typed)),
    "export": lambda typed: export.run(export.parse(typed)),
    "predict": lambda typed: predict.run(predict.parse(typed)),
    "bench": lambda typed: bench.run(bench.parse(typed)),
    "techniques": technique_matrix.run,
    "doctor": doctor.run,
}
SMALL = replace(base.recipe, batch=8, crop=0)
SPACES = {
    "good": HEAD + ONE + CONDITIONAL,
    "no_space": HEAD + ONE,
    "syntax": "import os\ndef space(trial)\n    return 1\n",
    "raises": "objectives = {}\nobjectives['accuracy']\n",
    "misspelt_model": HEAD + ONE + "def space(t): return replace(base, model='resnet21')\n",
    "misspelt_objective": HEAD + "objectives = {'acuracy': 'max'}\n" + CONDITIONAL,
    "misspelt_field": HEAD
    + ONE
    + "def space(trial): return replace(base, prune=Prune(sparsity=0.5))\n",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What people have around: models, data, notes, spaces, results."""
    root = tmp_path_factory.mktemp("mistakes")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    for name, text in SPACES.items():
        path = root / "spaces" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    stored = stored_models(root)["packed"]
    net, of = artefact.load(stored), artefact.about(stored).experiment
    artefact.save(net, of, 10, root / "net.packed", inputs=INPUTS)
    save_file({"weight": torch.ones(3)}, root / "foreign.safetensors")
    (root / "graph.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    (root / "notes.md").write_text("# Notes\n\nIt's a 5-layer network.\n")
    (root / "empty").mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root / "photo.png")
    write_folder(root / "photos", {"train/cat": 60, "train/dog": 60})
    write_folder(root / "strange_splits", {"train/cat": 9, "train/dog": 9, "holdout/cat": 9})
    other = root / "spaces" / "other.py"
    other.write_text(SPACES["good"].replace("0.01", "0.02"))
    space = spaces.load(other, PLAIN)
    sweep = Sweep(root / "results" / "other", space, trials=1, overrides=PLAIN)
    sweep.ask()
    sweep.close()
    monkeypatch.chdir(root)
    data.load(replace(base, data="photos", image_size=8, recipe=SMALL))  # decoded without remarks
    yield root
    monkeypatch.undo()


@pytest.fixture(autouse=True)
def _nothing_starts(files, no_training, monkeypatch):
    """In the folder of the files; neither Ray nor training starts."""

    def start(*_: object, **__: object) -> None:
        raise AssertionError("it started Ray")

    monkeypatch.setattr(session.ray, "init", start)
    monkeypatch.chdir(files)


def code_of(typed: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """The exit code of a command line, in this process."""
    try:
        if typed[:1] and typed[0] in RUNS:
            return RUNS[typed[0]](typed[1:])
        monkeypatch.setattr(sys, "argv", ["raybench", *typed])
        return main()
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(("typed", "advice"), MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_a_mistake_is_refused_in_one_line(typed, advice, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}
    assert code_of(shlex.split(typed), monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert advice in error
    changed = [p for p, when in before.items() if not p.exists() or p.stat().st_mtime_ns != when]
    assert [path for path in changed if ".state" not in path.parts] == []


def test_there_are_sixty_and_more():
    assert len(MISTAKES) >= 60
    assert len(dict(MISTAKES)) == len(MISTAKES)


@pytest.mark.workers
@pytest.mark.parametrize(
    "typed", ["train pruning --prune.sparsity 1", "predict graph.onnx photo.png", "tunes"]
)
def test_of_a_process_too(typed, files):
    done = subprocess.run(
        [sys.executable, "-m", "raybench", *typed.split()],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=files,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
