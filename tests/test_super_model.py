"""The super model: its latency at the end of a trial, its spaces, and a sweep over one of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from raybench import artefact, data
from raybench.artefact import onnx_graph, served_graph
from raybench.artefact.shipped import shipped_latency
from raybench.experiment import Experiment, flatten, preset
from raybench.models import build
from raybench.reports.percent import labelled
from raybench.reports.summary import front_table
from raybench.reports.tables.pruning import REFERENCE
from raybench.results.read import read
from raybench.search.overrides import Overrides
from raybench.search.space import load
from raybench.search.sweep import Sweep
from raybench.techniques.quantize import Quantize
from raybench.training import trainer

pytestmark = pytest.mark.slow

SPACES = Path(__file__).parent.parent / "search_spaces"


@pytest.fixture
def few(tiny: Experiment) -> Experiment:
    """Two epochs of two steps."""
    return replace(tiny, family="super_model", subset=0.05, latency=True)


class TestLatency:
    def test_is_told_once_at_the_end_of_what_was_stored(self, few, tmp_path, monkeypatch):
        asked = []

        def shipped(path: Path, experiment: Experiment, images: data.Images) -> dict[str, float]:
            asked.append((artefact.load(path), experiment, images))
            return {"latency_ms": 1.5, "latency_test_accuracy": 0.5}

        monkeypatch.setattr(trainer, "shipped_latency", shipped)
        first, last = trainer.train(few, store=tmp_path / "model.safetensors")
        assert "latency_ms" not in first.metrics
        assert last.metrics["latency_ms"] == 1.5
        assert last.metrics["latency_test_accuracy"] == 0.5
        ((model, experiment, images),) = asked
        assert experiment == few
        assert len(images.test) == len(data.load(few).test)
        assert sum(p.numel() for p in model.parameters()) == last.metrics["parameters"]
        assert list(trainer.train(few))[-1].metrics["latency_ms"] == 1.5  # nothing to keep
        *_, last = trainer.train(replace(few, latency=False))
        assert "latency_ms" not in last.metrics

    @pytest.mark.parametrize("activation_bits", [8, 32])
    def test_is_of_the_graph_whose_accuracy_is_told(self, few, monkeypatch, activation_bits):
        graphs = []
        made = onnx_graph.session
        monkeypatch.setattr(onnx_graph, "session", lambda g: graphs.append(g) or made(g))
        quantize = Quantize(bits=4, activation_bits=activation_bits)
        recipe = replace(few.recipe, epochs=1)
        (epoch,) = trainer.train(replace(few, quantize=quantize, recipe=recipe))
        assert 0 < epoch.metrics["latency_ms"] < 100
        timed, scored = graphs[-2:]
        assert timed == scored
        assert (b"QLinearConv" in timed) == (activation_bits == 8)
        images = data.load(few)
        told = epoch.metrics["latency_test_accuracy"]
        assert told == served_graph.accuracy(timed, images.test)
        if activation_bits == 32:  # the model's own weights and no other rounding
            assert told == pytest.approx(epoch.metrics["test_accuracy"], abs=0.01)

    @pytest.mark.parametrize(
        ("quantize", "graph"),
        [
            (None, b"fp32"),
            (Quantize(bits=0), b"fp32"),
            (Quantize(activation_bits=32), b"fp32"),
            (Quantize(), b"int8"),
        ],
    )
    def test_the_graph_is_the_one_that_is_shipped(
        self, few, tmp_path, monkeypatch, quantize, graph
    ):
        monkeypatch.setattr(onnx_graph, "fp32_graph", lambda *_: b"fp32")
        monkeypatch.setattr(onnx_graph, "int8_graph", lambda *_: b"int8")
        monkeypatch.setattr(onnx_graph, "Bound", lambda graph: lambda _: asked.add(graph))
        monkeypatch.setattr(served_graph, "served", lambda graph, *_: graph)
        monkeypatch.setattr(served_graph, "accuracy", lambda graph, _: asked.add(graph) or 0.75)
        asked: set[bytes] = set()
        path = tmp_path / "model.safetensors"
        artefact.save(build("resnet20", classes=10, image_size=8), few, 10, path)
        told = shipped_latency(path, replace(few, quantize=quantize), data.load(few))
        assert told["latency_ms"] >= 0
        assert told["latency_test_accuracy"] == 0.75
        assert asked == {graph}

    def test_without_the_operators_the_trial_fails_and_says_so(self, few, monkeypatch):
        def refused(*_: object) -> bytes:
            raise ValueError("ONNX Runtime 0.1 has no int8 graph of the model")

        monkeypatch.setattr(onnx_graph, "fp32_graph", refused)
        with pytest.raises(ValueError, match="has no int8 graph"):
            list(trainer.train(few))


class TestSpaces:
    def test_the_super_model_is_searched_over_all_its_parts(self, monkeypatch):
        for variable in ("RAYBENCH_START", "RAYBENCH_TEACHER"):
            monkeypatch.delenv(variable, raising=False)
        space = load(SPACES / "super_model.py", Overrides())
        assert list(space.objectives) == ["accuracy", "model_bytes", "latency_ms"]
        examples = space.examples
        assert {e.model for e in examples} == {"resnet20", "resnet20x2"}
        assert {e.quantize and e.quantize.bits for e in examples} == {None, 2, 3, 4, 6, 8}
        assert {e.prune and e.prune.schedule for e in examples} == {None, "polynomial", "constant"}
        assert {(e.recipe.mixup > 0, e.recipe.cutout > 0) for e in examples} == {
            (mixup, cutout) for mixup in (False, True) for cutout in (False, True)
        }
        assert {e.distill for e in examples} == {None}

    def test_a_teacher_adds_distillation(self, few, tmp_path, monkeypatch):
        path = tmp_path / "teacher.safetensors"
        artefact.save(build("resnet20", classes=10, image_size=8), few, 10, path)
        monkeypatch.setenv("RAYBENCH_TEACHER", str(path))
        examples = load(SPACES / "super_model.py", Overrides()).examples
        assert {e.distill and e.distill.teacher for e in examples} == {None, str(path)}

    def test_with_a_start_every_trial_goes_on_from_it(self, few, tmp_path, monkeypatch):
        path = tmp_path / "start.safetensors"
        wide = replace(few, model="resnet20x2")
        artefact.save(build("resnet20x2", classes=10, image_size=8), wide, 10, path)
        monkeypatch.setenv("RAYBENCH_START", str(path))
        space = load(SPACES / "super_model.py", Overrides())
        assert {(e.model, e.start_from) for e in space.examples} == {("resnet20x2", str(path))}
        assert {known["model"] for known in space.enqueue} == {"resnet20x2"}

    @pytest.mark.parametrize("variable", ["RAYBENCH_START", "RAYBENCH_TEACHER"])
    def test_a_model_that_is_not_there_is_said_at_once(self, variable, tmp_path, monkeypatch):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
        with pytest.raises(ValueError, match=r"super_model\.py:\d+: there is no file .*none"):
            load(SPACES / "super_model.py", Overrides())

    def test_quantization_is_trained_for_or_made_afterwards(self):
        examples = load(SPACES / "quantization.py", Overrides()).examples
        actual = [e.quantize for e in examples if e.quantize]
        assert {q.begin == 1.0 for q in actual} == {True, False}
        assert {q.bits for q in actual if not q.budget_bytes} == set(range(2, 9))
        assert {q.activation_bits for q in actual} == {32, 8, 4}
        smallest = min(q.budget_bytes for q in actual if q.budget_bytes)
        model = build("resnet20", classes=10, image_size=32)
        Quantize(budget_bytes=smallest).reshape(model)  # it can be met

    def test_pruning_grows_the_bits(self):
        actual = [
            e.quantize and e.quantize.bits
            for e in load(SPACES / "pruning.py", Overrides()).examples
        ]
        assert set(actual) == {None, 8, 4}

    def test_the_ladder_is_the_references_table(self):
        """Each of its rows has three seeds, and is one of the table's."""
        table = planned_table("super_model_ladder.py", trials=30)
        assert table["trials"].tolist() == [3] * 10
        actual = table[table["reference: accuracy"] != ""]
        told = zip(actual["model"], actual["kind"], actual["sparsity"], strict=True)
        assert set(told) == {(m, kind, f"{100 * band:g} %") for m, kind, band in REFERENCE}
        assert (table.loc[table["kind"] == "super model", "bits"] == "8").all()

    def test_a_ladders_taught_arms_are_rows_of_their_own(self):
        table = planned_table("compression_ladder.py", trials=21)
        assert table["trials"].tolist() == [3] * 7
        assert table.groupby(["kind", "teacher"]).size().to_dict() == {
            ("base", ""): 1,
            ("base", "yes"): 1,
            ("pruned", ""): 2,
            ("super model", ""): 2,
            ("super model", "yes"): 1,
        }
        # Of trials 0, 1, 2, … in order: the dense one without a teacher is what all stand against.
        dense = table[(table["kind"] == "base") & (table["teacher"] == "")]
        assert dense["vs dense, points"].tolist() == [0.0]
        assert (
            table["vs dense, points"]
            == table["test accuracy, %"] - dense["test accuracy, %"].iloc[0]
        ).all()


def planned_table(space_file: str, *, trials: int) -> pd.DataFrame:
    """The family's table of all that a ladder plans, each trial a point better than the last."""
    space = load(SPACES / space_file, Overrides())
    planned = space.examples[: len(space.enqueue)]
    assert len(set(planned)) == trials
    assert set(space.examples) == set(planned)
    rows = [
        {
            "status": "COMPLETE",
            **flatten(e),
            "test_accuracy": 0.5 + number / 100,
            "model_bytes": 1000,
            "s_per_epoch": 1.0,
            "precision_used": "float32",
        }
        for number, e in enumerate(planned)
    ]
    module = preset.load(planned[0].family)
    return module.table(pd.DataFrame(rows).convert_dtypes(), pd.DataFrame(), 0.5)


def test_a_sweep_on_digits_ends_with_a_front_of_three_objectives(tmp_path, monkeypatch):
    """In this process, with bytes for milliseconds: the graph's are measured above."""
    monkeypatch.delenv("RAYBENCH_TEACHER", raising=False)
    monkeypatch.setattr(
        trainer, "shipped_latency", lambda path, *_: {"latency_ms": float(path.stat().st_size)}
    )
    overrides = Overrides(epochs=1, subset=0.06)
    space = load(SPACES / "super_model.py", overrides)
    sweep = Sweep(tmp_path / "s", space, trials=2, overrides=overrides, keep="all")
    while (task := sweep.ask()) is not None:
        for epoch in trainer.train(task.experiment, store=task.model):
            assert not sweep.report(task.number, epoch.number, epoch.metrics)
        sweep.finish(task.number, "COMPLETE")
    sweep.close()
    results = read(tmp_path / "s")
    assert results.trials["status"].tolist() == ["COMPLETE"] * 2
    assert (results.trials["latency_ms"] == results.trials["model_bytes"]).all()
    assert {labelled(name) for name in space.objectives} < set(front_table(results).columns)
    for row in results.trials.to_dict("records"):
        model = artefact.load(tmp_path / "s" / "models" / f"{row['trial']}.safetensors")
        assert sum(p.numel() for p in model.parameters()) == row["parameters"]
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 32, 32)).isfinite().all()
    table = preset.load("super_model").table(results.trials, results.epochs, 0.5)
    assert table["trials"].sum() == 2
    assert (table["vs torch.save"] > 1).all()
    assert table["latency ms"].notna().all()
