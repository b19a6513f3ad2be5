"""Distillation: the loss against a slow reference, teachers beside students, addresses."""

from __future__ import annotations

import copy
import gc
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raybench import artefact, data, train
from raybench.experiment import Experiment
from raybench.models import build
from raybench.techniques import Batch, Progress, Technique
from raybench.techniques.distill import _TEACHERS, Distill, divergence
from raybench.training import loop, trained

CPU = torch.device("cpu")


def slow(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """T² · Σ p log(p / q), image by image and class by class, in Python's floats."""
    total = 0.0
    for z, v in zip(student.tolist(), teacher.tolist(), strict=True):
        ours, theirs = ([math.exp(x / temperature) for x in row] for row in (z, v))
        for q, p in zip(ours, theirs, strict=True):
            q, p = q / sum(ours), p / sum(theirs)
            total += p * math.log(p / q)
    return temperature**2 * total / len(student)


def stored(path: Path, experiment: Experiment, model: str = "resnet20", classes: int = 10) -> str:
    """The file of a fresh model, with weights of its own."""
    torch.manual_seed(11)
    described = replace(experiment, model=model)
    teacher = build(model, classes=classes, image_size=experiment.image_size)
    artefact.save(teacher, described, classes, path)
    return str(path)


@pytest.fixture
def teacher(tmp_path: Path, tiny: Experiment) -> str:
    return stored(tmp_path / "teacher.safetensors", tiny)


class TestDivergence:
    @given(st.floats(0.5, 20.0), st.integers(1, 5), st.integers(2, 12), st.integers(0, 99))
    def test_equals_a_slow_reference(self, temperature, batch, classes, seed):
        generator = torch.Generator().manual_seed(seed)
        student, teacher = 5 * torch.randn(2, batch, classes, generator=generator)
        actual = divergence(student, teacher, temperature).item()
        assert actual == pytest.approx(slow(student, teacher, temperature), rel=1e-3, abs=1e-4)
        assert actual >= -1e-4

    def test_is_nothing_where_both_agree(self):
        logits = torch.randn(4, 10)
        shifted = logits + torch.randn(4, 1)  # a constant on all logits is no other answer
        assert float(divergence(logits, shifted, 3.0)) == pytest.approx(0, abs=1e-5)

    def test_its_gradient_is_the_difference_of_the_answers(self):
        """T · (softmax(z / T) - softmax(v / T)) an image: section 2, equation 2, times T²."""
        z, v, temperature = torch.randn(3, 7, requires_grad=True), torch.randn(3, 7), 4.0
        divergence(z, v, temperature).backward()
        soft = [torch.softmax(logits.detach() / temperature, 1) for logits in (z, v)]
        assert torch.allclose(z.grad, temperature * (soft[0] - soft[1]) / 3, atol=1e-6)

    def test_is_in_fp32(self):
        logits = torch.randn(2, 5, dtype=torch.bfloat16)
        assert divergence(logits, logits, 2.0).dtype == torch.float32


class TestTeacher:
    def begun(self, technique: Technique, model: nn.Module, experiment: Experiment) -> None:
        technique.before_training(model, lambda address: trained.load(address, experiment, 10, CPU))

    def test_adds_its_weight_times_the_divergence(self, teacher, tiny):
        model, technique = (
            build("resnet20", classes=10, image_size=8),
            Distill(teacher=teacher, temperature=3.0, weight=0.25),
        )
        self.begun(technique, model, tiny)
        x = torch.randn(4, 3, 8, 8)
        logits = model(x)
        memory = {}
        penalty = technique.penalty(model, Batch(x, torch.zeros(4), logits), memory)
        # In evaluation mode: by its running statistics, not by this batch's.
        wanted = 0.25 * slow(logits, artefact.load(teacher)(x), 3.0)
        assert penalty.item() == pytest.approx(wanted, rel=1e-4)
        penalty.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert technique.measure(copy.deepcopy(model), memory)[
            "distillation_loss"
        ] == pytest.approx(4 * penalty.item())

    def test_learns_nothing_itself(self, teacher, tiny):
        model, technique = build("resnet20", classes=10, image_size=8), Distill(teacher=teacher)
        self.begun(technique, model, tiny)
        kept = _TEACHERS[model]
        before = copy.deepcopy(kept.state_dict())
        for _ in range(2):
            x = torch.randn(4, 3, 8, 8)
            technique.penalty(model, Batch(x, torch.zeros(4), model(x)), {}).backward()
        assert not kept.training
        assert all(p.grad is None and not p.requires_grad for p in kept.parameters())
        assert all(torch.equal(t, before[n]) for n, t in kept.state_dict().items())

    def test_is_no_part_of_its_student_and_goes_with_it(self, teacher, tiny):
        model, technique = build("resnet20", classes=10, image_size=8), Distill(teacher=teacher)
        plain = list(model.state_dict())
        before = len(_TEACHERS)
        self.begun(technique, model, tiny)
        assert len(_TEACHERS) == before + 1
        assert list(model.state_dict()) == plain
        assert sum(1 for _ in model.modules()) == sum(1 for _ in copy.deepcopy(model).modules())
        assert technique.measure(copy.deepcopy(model), {}) == {}
        del model
        gc.collect()
        assert len(_TEACHERS) == before

    def test_answers_in_the_precision_of_the_step(self, teacher, tiny):
        model, technique = build("resnet20", classes=10, image_size=8), Distill(teacher=teacher)
        self.begun(technique, model, tiny)
        seen = []
        kept = _TEACHERS[model]
        kept.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
        x = torch.randn(4, 3, 8, 8)
        for dtype in (torch.float32, torch.bfloat16):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                logits = model(x)
            technique.penalty(model, Batch(x, torch.zeros(4), logits), {})
        assert seen == [torch.float32, torch.bfloat16]

    def test_the_tally_is_an_epochs(self, teacher, tiny):
        model, technique = build("resnet20", classes=10, image_size=8), Distill(teacher=teacher)
        self.begun(technique, model, tiny)
        x, found, memory = torch.randn(4, 3, 8, 8), [], {}
        for step in range(3):
            assert not technique.restructure(model, Progress(step, 3), memory)
            assert technique.measure(model, memory) == {}
            loss = technique.penalty(model, Batch(x * step, torch.zeros(4), model(x)), memory)
            found.append(technique.measure(model, memory)["distillation_loss"])
            assert found[-1] == pytest.approx(loss.item())

    def test_of_another_family_and_width_teaches_as_well(self, tiny, tmp_path):
        other = stored(tmp_path / "vit.safetensors", tiny, "vit32x2")
        technique = Distill(teacher=other)
        (epoch,) = loop.fit(
            replace(tiny, distill=technique, recipe=replace(tiny.recipe, epochs=1, mixup=0.3)),
            data.load(tiny),
        )
        assert epoch.metrics["distillation_loss"] > 0
        assert epoch.metrics["loss"] > epoch.metrics["distillation_loss"]


class TestRun:
    def test_the_stored_student_needs_its_teacher_no_more(self, teacher, tiny, tmp_path):
        experiment = replace(tiny, distill=Distill(teacher=teacher), subset=0.05)
        recipe = replace(tiny.recipe, epochs=1)
        for _ in loop.fit(
            replace(experiment, recipe=recipe), data.load(experiment), store=tmp_path / "student"
        ):
            pass
        Path(teacher).unlink()
        student = artefact.load(tmp_path / "student")
        assert student(torch.zeros(1, 3, 8, 8)).shape == (1, 10)

    def test_the_command_says_what_is_wrong_with_a_teacher(self, tiny, tmp_path, capsys):
        flags = ["--image-size", "8", "--recipe.crop", "1", "--recipe.batch", "32", "--results"]
        missing = ["--distill.teacher", str(tmp_path / "none")]
        assert train.run(["pruning", *flags, str(tmp_path), *missing]) == 2
        assert f"there is no file {tmp_path / 'none'}" in capsys.readouterr().err
        assert not (tmp_path / "pruning-runs" / "trials").exists()


class TestRefused:
    def load(self, address: str | Path, experiment: Experiment, classes: int = 10) -> nn.Module:
        return trained.load(str(address), experiment, classes, CPU)

    def test_no_such_file(self, tiny, tmp_path):
        with pytest.raises(ValueError, match=f"there is no file {tmp_path / 'x'}"):
            self.load(tmp_path / "x", tiny)

    def test_no_trained_model(self, tiny, tmp_path):
        (tmp_path / "x").write_bytes(b"no model at all, but some bytes")
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / "x"))):
            self.load(tmp_path / "x", tiny)

    def test_other_classes_name_both_numbers(self, tiny, tmp_path):
        path = stored(tmp_path / "hundred", tiny, classes=100)
        with pytest.raises(ValueError, match="has 100 classes, but the data has 10"):
            self.load(path, tiny)

    def test_other_images(self, tiny, tmp_path):
        path = stored(tmp_path / "small", tiny)
        with pytest.raises(ValueError, match="on images of 8 pixels, but these have 16"):
            self.load(path, replace(tiny, image_size=16))

    @pytest.mark.parametrize(
        "values",
        [{"temperature": 0.0}, {"temperature": math.nan}, {"weight": -1.0}, {"weight": math.inf}],
    )
    def test_wrong_values(self, values):
        with pytest.raises(ValueError, match=next(iter(values))):
            Distill(**values)


class TestAddress:
    @pytest.fixture
    def sweep(self, tmp_path: Path) -> Path:
        models = tmp_path / "results" / "a-sweep" / "models"
        models.mkdir(parents=True)
        for number in (0, 3, 12):
            (models / f"a-sweep-{number:04d}.json").write_text(json.dumps({}))
        for number in (3, 12):
            (models / f"a-sweep-{number:04d}.safetensors").write_bytes(b"")
        return models.parent

    def test_of_a_trial(self, sweep):
        assert trained.find(f"{sweep}#3") == sweep / "models" / "a-sweep-0003.safetensors"
        assert trained.find(f"{sweep}#12").name == "a-sweep-0012.safetensors"

    def test_of_a_trial_whose_model_was_not_kept(self, sweep):
        with pytest.raises(ValueError, match="no model of trial '0'; there are 3, 12"):
            trained.find(f"{sweep}#0")

    def test_of_a_folder_without_models(self, tmp_path):
        with pytest.raises(ValueError, match="no model of trial '1'; there are none"):
            trained.find(f"{tmp_path}#1")

    def test_of_a_folder(self, sweep):
        with pytest.raises(ValueError, match=re.escape(f"as in {sweep}#0")):
            trained.find(str(sweep))

    def test_of_a_file_with_the_sign_in_its_name(self, tmp_path):
        path = tmp_path / "a#1"
        path.write_bytes(b"")
        assert trained.find(str(path)) == path

    def test_first_weights_come_from_a_trial_as_well(self, sweep, tiny):
        path = sweep / "models" / "a-sweep-0003.safetensors"
        stored(path, tiny)
        model = loop.first_model(replace(tiny, start_from=f"{sweep}#3"), 10)
        theirs = artefact.load(path).state_dict()
        assert all(torch.equal(t, theirs[name]) for name, t in model.state_dict().items())
