"""One contract, held by every technique: add a line to TABLE with the technique."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, fields, replace
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import nn

from raybench import artefact, family, loop
from raybench.experiment import Experiment, from_json
from raybench.models import build
from raybench.optim import build_optimizer
from raybench.techniques import Memory, Progress, Technique
from raybench.techniques.prune import Prune
from trainers.pruning import train


@dataclass(frozen=True)
class Case:
    """A field of Experiment, a setting at which the technique does nothing, and one that acts."""

    field: str
    neutral: Technique
    active: Technique
    adds_parameters: bool = False


TABLE = [
    Case(
        "prune",
        neutral=Prune(final_sparsity=0.0),
        active=Prune(final_sparsity=0.8, begin=0.1, end=0.7, frequency=2),
    ),
]

STEPS = 6


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
    return [epoch.metrics for epoch in train(experiment, **arguments)]


def trained(technique: Technique, *, until: int = STEPS) -> tuple[nn.Module, Memory]:
    """A ResNet-20 after some steps with the technique, as the loop takes them."""
    torch.manual_seed(0)
    model, memory = build("resnet20", classes=10, image_size=8), {}
    technique.reshape(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(1, until + 1):
        x, y = torch.randn(8, 3, 8, 8), torch.randint(10, (8,))
        loss = nn.functional.cross_entropy(model(x), y) + technique.penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        technique.after_step(model, Progress(step, STEPS), memory)
    return model, memory


@pytest.mark.parametrize("case", TABLE, ids=[case.field for case in TABLE])
class TestContract:
    def with_(self, tiny: Experiment, case: Case, technique: Technique | None) -> Experiment:
        return replace(tiny, **{case.field: technique})

    def test_neutral_settings_change_no_bit_of_the_losses(self, case, tiny):
        plain = metrics(self.with_(tiny, case, None))
        neutral = metrics(self.with_(tiny, case, case.neutral))
        assert len(plain) == 2
        for name in ("loss", "validation_loss", "accuracy"):
            assert [m[name] for m in plain] == [m[name] for m in neutral]
        assert plain[-1]["test_loss"] == neutral[-1]["test_loss"]

    def test_active_settings_do_change_them(self, case, tiny):
        """Else the claim above would say nothing."""
        plain = metrics(self.with_(tiny, case, None))
        active = metrics(self.with_(tiny, case, case.active))
        assert plain[-1]["loss"] != active[-1]["loss"]

    def test_all_trainable_parameters_reach_the_optimizer(self, case, tiny):
        model = build(tiny.model, classes=10, image_size=tiny.image_size)
        case.active.reshape(model)
        groups = build_optimizer(model, tiny.recipe).param_groups
        reached = [id(parameter) for group in groups for parameter in group["params"]]
        wanted = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
        assert sorted(reached) == sorted(wanted)

    def test_json_round_trip(self, case, tiny):
        for technique in (case.neutral, case.active, type(case.active)()):
            experiment = self.with_(tiny, case, technique)
            assert from_json(experiment.to_json()) == experiment
            assert experiment.techniques() == [(case.field, technique)]

    def test_a_resumed_run_ends_bit_for_bit_alike(self, case, tiny, tmp_path):
        experiment = self.with_(tiny, case, case.active)
        whole = metrics(experiment, store=tmp_path / "whole.safetensors")

        state, stored = tmp_path / "state.pt", tmp_path / "resumed.safetensors"
        first = train(experiment)
        next(first).save(state)
        first.close()
        rest = metrics(experiment, resume=state, store=stored)

        assert len(rest) == 1
        names = ("loss", "accuracy", "validation_loss", "test_accuracy", "test_loss", "lr")
        for name in (*names, "model_bytes", *case.active.measure(nn.Linear(1, 1))):
            assert rest[-1][name] == whole[-1][name], name
        one, other = artefact.load(stored), artefact.load(tmp_path / "whole.safetensors")
        same = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in same)

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
        assert len(seen) == 4 * 19  # steps times convolutions of a ResNet-20
        assert set(seen) == {(True, torch.bfloat16)}
        assert last["precision_used"] == "bfloat16"
        assert math.isfinite(last["loss"])

    def test_deepcopy_works_after_steps(self, case, tiny):
        model, _ = trained(case.active)
        twin = copy.deepcopy(model)
        case.active.finish(twin)
        x = torch.randn(2, 3, 8, 8)
        assert twin.eval()(x).isfinite().all()
        ours = {parameter.data_ptr() for parameter in model.parameters()}
        assert ours.isdisjoint(parameter.data_ptr() for parameter in twin.parameters())

    def test_state_dict_keys_stay_those_of_the_plain_model(self, case, tiny):
        if case.adds_parameters:
            pytest.skip("it adds parameters")
        model, _ = trained(case.active)
        plain = build("resnet20", classes=10, image_size=8)
        assert list(model.state_dict()) == list(plain.state_dict())
        case.active.finish(model)
        assert list(model.state_dict()) == list(plain.state_dict())

    def test_measure_gives_finite_columns_of_the_table(self, case, tiny):
        model, _ = trained(case.active)
        found = case.active.measure(model)
        columns = family.metrics(tiny.family)
        assert set(found) <= set(columns)
        for name, value in found.items():
            assert type(value) is columns[name]
            assert math.isfinite(value)

    def test_a_technique_is_a_frozen_value_without_state(self, case, tiny):
        before = hash(case.active)
        trained(case.active)
        assert hash(case.active) == before
        assert vars(case.active).keys() == {field.name for field in fields(case.active)}
