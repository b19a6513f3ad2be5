"""`python -m raybench.export`: what it writes, prints and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raybench import artefact, data, export
from raybench.artefact import onnx_graph, served_graph
from raybench.experiment import Experiment
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from raybench.training.loop import fit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT as training leaves it: pruned, quantized, packed."""
    from trainers.pruning import base

    recipe = replace(base.recipe, epochs=1, batch=32, crop=1, precision="fp32", lr=0.01)
    experiment = replace(
        base, model="vit32x1", image_size=8, subset=0.1, recipe=recipe,
        prune=Prune(final_sparsity=0.8, begin=0.1, end=0.7, frequency=1),
        quantize=Quantize(bits=4, begin=0.5),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("stored") / "model.safetensors"
    for _ in fit(experiment, data.load(experiment), store=path):
        pass
    assert artefact.is_packed(path)
    return path


def options(*arguments: object) -> export.Export:
    return export.parse([str(argument) for argument in arguments])


def state_bytes(path: Path) -> list[bytes]:
    return [t.numpy().tobytes() for t in artefact.load(path).state_dict().values()]


def test_packs_and_prints_where_the_bytes_are(stored, tmp_path, capsys):
    out = tmp_path / "deep" / "model.packed"
    assert export.run(options(stored, "--out", out)) == 0
    printed = capsys.readouterr().out
    assert out.read_bytes() == stored.read_bytes()
    for said in ("blocks.0.mlp.fc1.weight", "grid", "128x32", "ratio_fp32", "entropy_bytes"):
        assert said in printed
    assert f"file_bytes           {out.stat().st_size:,}" in printed
    assert list(out.parent.iterdir()) == [out]


def test_an_unquantized_model_is_packed_as_floats(tiny, tmp_path, capsys):
    model = artefact.skeleton(tiny, 10)
    artefact.save(model, tiny, 10, tmp_path / "m.safetensors")
    assert not artefact.is_packed(tmp_path / "m.safetensors")
    assert export.run(options(tmp_path / "m.safetensors", "--json")) == 0
    figures = json.loads(capsys.readouterr().out)
    packed = tmp_path / "m.packed"
    assert figures["packed"] == str(packed)
    assert artefact.is_packed(packed)
    assert state_bytes(packed) == state_bytes(tmp_path / "m.safetensors")
    assert figures["file_bytes"] == packed.stat().st_size < figures["fp32_bytes"]
    assert figures["file_bytes"] == sum(row["bytes"] for row in figures["tensors"])
    assert {row["codec"] for row in figures["tensors"]} >= {"planes", "constant"}


def test_writes_the_graph_and_measures_both(stored, tmp_path, capsys):
    graph, out = tmp_path / "m.onnx", tmp_path / "m.packed"
    arguments = ("--out", out, "--onnx", graph, "--images", 64, "--json")
    assert export.run(options(stored, *arguments)) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["onnx_bytes"] == graph.stat().st_size < figures["onnx_fp32_bytes"]
    experiment = artefact.about(out).experiment
    images = data.load(experiment)
    assert figures["test_images"] == len(images.test)
    content = graph.read_bytes()
    assert figures["onnx_test_accuracy"] == served_graph.accuracy(content, images.test)
    described = served_graph.metadata(content)
    assert described["class_names"] == list(images.class_names)
    assert described["image_size"] == experiment.image_size
    x, y = next(data.evaluation_batches(images, images.test))
    with torch.inference_mode():
        right = (artefact.load(out)(x).argmax(1) == y).float().mean()
    assert figures["test_accuracy"] == pytest.approx(float(right))


@pytest.mark.parametrize(
    ("arguments", "because"),
    [
        (["missing.packed"], "there is no file missing.packed"),
        (["{stored}", "--onnx", "m.onnx", "--data", "nowhere"], "nowhere"),
        (["{stored}", "--onnx", "m.onnx", "--images", "0"], "images is 0: 1 or more"),
        (["{damaged}"], "checksum is wrong"),
    ],
    ids=["missing", "no data", "no images", "damaged"],
)
def test_what_cannot_be_exported_leaves_nothing(
    stored, tmp_path, monkeypatch, capsys, arguments, because
):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    damaged = bytearray(stored.read_bytes())
    damaged[100] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    places = {"stored": stored, "damaged": tmp_path / "damaged"}
    said = [argument.format(**places) for argument in arguments]
    assert export.run(options(*said, "--out", "m.packed")) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("raybench.export: ")
    assert because in captured.err
    assert list(work.iterdir()) == []


def test_a_graph_that_is_refused_leaves_nothing(stored, tmp_path, monkeypatch, capsys):
    def refuse(*_: object) -> bytes:
        raise ValueError("ONNX Runtime has no int8 graph of the model")

    monkeypatch.setattr(onnx_graph, "int8_graph", refuse)
    monkeypatch.setattr(onnx_graph, "fp32_graph", lambda *_: b"")
    out = ("--out", tmp_path / "m.packed", "--onnx", tmp_path / "m.onnx")
    assert export.run(options(stored, *out)) == 2
    assert "has no int8 graph" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_images_of_other_classes_are_refused(tiny: Experiment, tmp_path, capsys):
    artefact.save(artefact.skeleton(tiny, 7), tiny, 7, tmp_path / "m")
    assert export.run(options(tmp_path / "m", "--onnx", tmp_path / "m.onnx")) == 2
    assert "digits has 10 classes, the model 7" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as left:
        options("--help")
    assert left.value.code == 0
    printed = capsys.readouterr().out
    for said in ("--out", "--onnx", "--images", "--json", "python -m raybench.export results"):
        assert said in printed
