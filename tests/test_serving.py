"""A trained model where it is served: the docs' lines, `raybench.predict`, and what is refused."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from raybench import artefact, data, export, predict
from raybench.training.loop import fit
from trainers.pruning import base

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parent.parent / "docs" / "serving.md"
NAMES = ["zero", "one", "two"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Digits as files, larger than the model's images and not square."""
    root = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    for label, name in enumerate(NAMES):
        images = digits.images[digits.target == label]
        for number, pixels in enumerate(images[:60]):
            part = "test" if number >= 50 else "train"
            path = root / part / name / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shown = Image.fromarray((pixels * 15).astype(np.uint8)).resize((24, 20))
            shown.save(path)
    return root


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory) -> tuple[Path, Path, dict]:
    """The packed file, the ONNX graph and what was told of both."""
    out = tmp_path_factory.mktemp("models")
    recipe = replace(base.recipe, batch=16, epochs=4, crop=0, flip=False)
    experiment = replace(base, data=str(folder), image_size=16, recipe=recipe)
    stored = out / "m.safetensors"
    for _ in fit(experiment, data.load(experiment), store=stored):
        pass
    options = export.parse([str(stored), "--onnx", str(out / "m.onnx"), "--images", "64"])
    _, figures = export.export(options)
    return out / "m.packed", out / "m.onnx", figures


def files_of(folder: Path) -> list[tuple[str, Path]]:
    return [(path.parent.name, path) for path in sorted((folder / "test").glob("*/*.png"))]


def test_the_lines_of_the_docs_are_as_accurate_as_was_told(
    folder, served, tmp_path, monkeypatch, capsys
):
    _, graph, figures = served
    lines = next(
        b for b in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "argv" in b
    )
    assert len([line for line in lines.splitlines() if line.strip()]) <= 11
    program = compile(lines, "serving.md", "exec")
    correct = []
    for name, path in files_of(folder):
        monkeypatch.setattr(sys, "argv", ["serve.py", str(graph), str(path)])
        exec(program, {})
        correct.append(capsys.readouterr().out.strip() == name)
    assert len(correct) == figures["test_images"] == 30
    assert np.mean(correct) == pytest.approx(figures["onnx_test_accuracy"])
    assert np.mean(correct) > 0.6


@pytest.mark.parametrize("kind", [0, 1])
def test_predict_reads_images_as_training_does(folder, served, kind, capsys):
    names, paths = zip(*files_of(folder), strict=True)
    told = served[2]["test_accuracy" if kind == 0 else "onnx_test_accuracy"]
    arguments = [str(served[kind]), *map(str, paths), "--json", "--top", "3"]
    assert predict.run(predict.parse(arguments)) == 0
    actual = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    correct = [one["classes"][0]["class"] == name for one, name in zip(actual, names, strict=True)]
    assert np.mean(correct) == pytest.approx(told)
    for one in actual:
        shares = [c["probability"] for c in one["classes"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-4)


def test_predict_in_words(folder, served, capsys):
    path = files_of(folder)[0][1]
    assert predict.run(predict.parse([str(served[0]), str(path)])) == 0
    assert re.fullmatch(rf"{path}  \w+ \d+\.\d %\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{packed}"], "name one image or more"),
        (["{packed}", "nowhere.png"], "there is no image nowhere.png"),
        (["{packed}", "{packed}"], "is not a readable image"),
        (["nowhere.packed", "{image}"], "nowhere.packed"),
        (["{image}", "{image}"], "holds no trained model"),
        (["nowhere.onnx", "{image}"], "there is no file nowhere.onnx"),
        (["{broken}", "{image}"], "is no ONNX graph that raybench wrote"),
        (["{packed}", "{image}", "--top", "0"], "--top is 0"),
    ],
)
def test_what_cannot_be_read_is_one_line(folder, served, arguments, said, tmp_path, capsys):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(served[1].read_bytes()[:1000])
    image = files_of(folder)[0][1]
    given = [a.format(packed=served[0], image=image, broken=broken) for a in arguments]
    assert predict.run(predict.parse(given)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_graph_tells_what_it_takes(served):
    inputs, _ = predict.opened(served[1])
    assert inputs == artefact.about(served[0]).inputs
    assert set(inputs.class_names) == set(NAMES)
