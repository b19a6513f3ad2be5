"""One contract, held by every technique: add a line to TABLE with the technique."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from typing import Any, get_args, get_type_hints

import pytest
import torch
from technique_cases import STEPS, TABLE, TEACHER, Case
from torch import nn

from raybench import artefact
from raybench.experiment import Experiment, Recipe, from_json
from raybench.models import build
from raybench.techniques import Batch, Memory, Progress, Technique
from raybench.training import loop, trainer
from raybench.training import trained as trained_model
from raybench.training.optim import build_optimizer
from trainers import pruning


@pytest.fixture(scope="module", autouse=True)
def _teacher() -> Iterator[None]:
    torch.manual_seed(7)
    described = replace(pruning.base, image_size=8)
    artefact.save(build("resnet20", classes=10, image_size=8), described, 10, TEACHER)
    yield
    TEACHER.unlink()


def test_every_technique_stands_in_the_table():
    hints = get_type_hints(Experiment)
    on = {
        field.name
        for field in fields(Experiment)
        for kind in (hints[field.name], *get_args(hints[field.name]))
        if isinstance(kind, type) and issubclass(kind, Technique)
    }
    assert on == {case.field for case in TABLE}


def metrics(experiment: Experiment, **arguments: Any) -> list[loop.Metrics]:
    train = trainer.trainer(experiment)
    return [epoch.metrics for epoch in train(experiment, **arguments)]


def plain(case: Case) -> nn.Module:
    return build(case.model, classes=10, image_size=8)


def trained(case: Case, technique: Technique) -> tuple[nn.Module, Memory]:
    """The case's model after some steps with the technique, as the loop takes them."""
    torch.manual_seed(0)
    model, memory = plain(case), {}
    technique.reshape(model)
    experiment = replace(pruning.base, image_size=8, recipe=Recipe(precision="fp32"))
    device = torch.device("cpu")
    technique.before_training(
        model, partial(trained_model.load, experiment=experiment, classes=10, device=device)
    )
    for step in range(1, STEPS + 1):
        if step in (1, STEPS // 2 + 1):
            technique.restructure(model, Progress(step - 1, STEPS), memory)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        x, y = torch.randn(8, 3, 8, 8), torch.randint(10, (8,))
        logits = model(x)
        batch = Batch(x, y, logits)
        loss = nn.functional.cross_entropy(logits, y) + technique.penalty(model, batch, memory)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        technique.after_step(model, Progress(step, STEPS), memory, None)
    return model, memory


@pytest.mark.parametrize("case", TABLE, ids=[case.name for case in TABLE])
class TestContract:
    def with_(self, tiny: Experiment, case: Case, technique: Technique | None) -> Experiment:
        return replace(tiny, family=case.family, model=case.model, **{case.field: technique})

    @pytest.mark.slow
    def test_neutral_settings_change_no_bit_of_the_losses(self, case, tiny):
        without = metrics(self.with_(tiny, case, None))
        neutral = metrics(self.with_(tiny, case, case.neutral))
        assert len(without) == 2
        for name in ("loss", "validation_loss", "accuracy"):
            assert [m[name] for m in without] == [m[name] for m in neutral]
        assert without[-1]["test_loss"] == neutral[-1]["test_loss"]

    @pytest.mark.slow
    def test_active_settings_do_change_them(self, case, tiny):
        """Else the claim above would say nothing."""
        without = metrics(self.with_(tiny, case, None))
        active = metrics(self.with_(tiny, case, case.active))
        # What acts after training alone leaves the training loss as it is.
        assert any(without[-1][name] != active[-1][name] for name in ("loss", "test_loss"))

    def test_all_trainable_parameters_reach_the_optimizer(self, case, tiny):
        model = plain(case)
        case.active.reshape(model)
        groups = build_optimizer(model, tiny.recipe).param_groups
        reached = [id(parameter) for group in groups for parameter in group["params"]]
        wanted = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
        assert sorted(reached) == sorted(wanted)

    def test_json_round_trip(self, case, tiny):
        for technique in (case.neutral, case.active, type(case.active)()):
            experiment = self.with_(tiny, case, technique)
            assert from_json(experiment.to_json()) == experiment
            on = [(case.field, technique)] if technique.active else []
            assert experiment.techniques() == on

    @pytest.mark.slow
    def test_a_resumed_run_ends_bit_for_bit_alike(self, case, tiny, tmp_path):
        experiment = self.with_(tiny, case, case.active)
        whole = metrics(experiment, store=tmp_path / "whole.safetensors")

        state, stored = tmp_path / "state.pt", tmp_path / "resumed.safetensors"
        first = trainer.train(experiment)
        next(first).save(state)
        first.close()
        rest = metrics(experiment, resume=state, store=stored)

        assert len(rest) == 1
        names = ("loss", "accuracy", "validation_loss", "test_accuracy", "test_loss", "lr")
        for name in (
            *names,
            "model_bytes",
            *case.active.measure(trained(case, case.active)[0], {}),
        ):
            assert rest[-1][name] == whole[-1][name], name
        one, other = artefact.load(stored), artefact.load(tmp_path / "whole.safetensors")
        same = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in same)

    @pytest.mark.slow
    def test_bf16_and_channels_last_reach_every_convolution(self, case, tiny):
        recipe = replace(tiny.recipe, precision="bf16", epochs=1)
        seen: list[tuple[bool, torch.dtype]] = []

        def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, nn.Conv2d) and module.training:
                turned = [
                    tensor.is_contiguous(memory_format=torch.channels_last)
                    for tensor in (inputs[0], module.weight, output)
                ]
                seen.append((all(turned), output.dtype))

        hook = nn.modules.module.register_module_forward_hook(look)
        try:
            (last,) = metrics(replace(self.with_(tiny, case, case.active), recipe=recipe))
        finally:
            hook.remove()
        convolutions = sum(isinstance(m, nn.Conv2d) for m in plain(case).modules())
        assert len(seen) == 4 * convolutions > 0  # once a step
        assert set(seen) == {(True, torch.bfloat16)}
        assert last["precision_used"] == "bfloat16"
        assert math.isfinite(last["loss"])

    def test_deepcopy_works_after_steps(self, case, tiny):
        model, _ = trained(case, case.active)
        twin = copy.deepcopy(model)
        case.active.finish(twin, {})
        x = torch.randn(2, 3, 8, 8)
        assert twin.eval()(x).isfinite().all()
        ours = {parameter.data_ptr() for parameter in model.parameters()}
        assert ours.isdisjoint(parameter.data_ptr() for parameter in twin.parameters())

    def test_state_dict_keys_stay_those_of_the_plain_model(self, case, tiny):
        """In the neutral setting at least: a technique that adds parameters adds keys."""
        technique = case.neutral if case.adds_parameters else case.active
        model, _ = trained(case, technique)
        assert list(model.state_dict()) == list(plain(case).state_dict())
        technique.finish(model, {})
        assert list(model.state_dict()) == list(plain(case).state_dict())

    def test_finish_keeps_the_keys_that_training_had(self, case, tiny):
        model, _ = trained(case, case.active)
        before = list(model.state_dict())
        assert (before != list(plain(case).state_dict())) == case.adds_parameters
        case.active.finish(model, {})
        assert list(model.state_dict()) == before

    def test_measure_gives_finite_columns_of_the_table(self, case, tiny):
        model, memory = trained(case, case.active)
        case.active.evaluated(model, memory)  # as the loop does, before it measures
        measured = case.active.measure(model, memory)
        columns = type(case.active).columns
        assert measured
        assert set(measured) <= set(columns)
        for name, value in measured.items():
            assert type(value) is columns[name].type
            assert isinstance(value, str) or math.isfinite(value)

    def test_a_technique_is_a_frozen_value_without_state(self, case, tiny):
        before = hash(case.active)
        trained(case, case.active)
        assert hash(case.active) == before
        assert vars(case.active).keys() == {field.name for field in fields(case.active)}
