"""An optimizer that a technique supplies for some of the parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from raybench import data
from raybench.experiment import Experiment, Parallel, Pipeline, compatible
from raybench.techniques import Memory, Progress, Technique
from raybench.training.loop import Epoch, fit
from raybench.training.optim import learning_rate
from raybench.training.replicated import Replicated

SHARE = 0.1  # of the recipe's learning rate


@dataclass(frozen=True, kw_only=True)
class MuonForTheHead(Technique):
    """Muon for the matrix of the last layer, at a tenth of the recipe's learning rate."""

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer | None:
        return torch.optim.Muon([model.get_parameter("fc.weight")], lr=SHARE * lr)

    def after_step(
        self,
        model: nn.Module,
        progress: Progress,
        memory: Memory,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Notes whose optimizer it was given, and the learning rate of the step."""
        assert isinstance(optimizer, torch.optim.Muon)
        rate = torch.tensor(optimizer.param_groups[0]["lr"], dtype=torch.float64)
        memory["rates"] = torch.cat([memory.get("rates", rate[None][:0]), rate[None]])


@pytest.fixture
def with_muon(tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The smallest experiment, to whose techniques Muon is added."""
    before = Experiment.techniques
    monkeypatch.setattr(
        Experiment, "techniques", lambda self: [*before(self), ("muon", MuonForTheHead())]
    )
    return tiny


def runs(experiment: Experiment) -> tuple[Replicated, list[Epoch]]:
    """The runner, and the epochs."""
    kept: list[Replicated] = []

    def begin(*given: Any) -> Replicated:
        kept.append(Replicated(*given))
        return kept[-1]

    epochs = list(fit(experiment, data.load(experiment), begin=begin))
    return kept[0], epochs


def test_each_parameter_has_one_optimizer_and_the_schedule_scales_both(with_muon):
    runner, _ = runs(with_muon)
    recipes, muon = runner._optimizers.all
    of_recipe, of_muon = (
        {id(p) for group in o.param_groups for p in group["params"]} for o in (recipes, muon)
    )
    model = runner.whole()
    assert of_muon == {id(model.get_parameter("fc.weight"))}
    assert of_recipe | of_muon == {id(parameter) for parameter in model.parameters()}
    assert not of_recipe & of_muon
    recipe = with_muon.recipe
    wanted = [SHARE * learning_rate(recipe, step / 8) for step in range(8)]
    assert runner.memories()["muon"]["rates"].tolist() == pytest.approx(wanted)


def test_it_trains_otherwise_than_the_recipe(tiny, with_muon, monkeypatch):
    _, muon = runs(with_muon)
    monkeypatch.undo()
    _, plain = runs(tiny)
    assert muon[0].metrics["loss"] != plain[0].metrics["loss"]


def test_a_resumed_run_ends_bit_for_bit_alike(with_muon, tmp_path):
    images = data.load(with_muon)
    first = fit(with_muon, images)
    next(first).save(tmp_path / "state.pt")
    first.close()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["optimizers"]["muon"]["state"]  # Muon's momentum
    *_, whole = fit(with_muon, images)
    (resumed,) = fit(with_muon, images, resume=tmp_path / "state.pt")
    for name in ("loss", "validation_loss", "test_loss"):
        assert resumed.metrics[name] == whole.metrics[name]


def test_what_shards_or_stages_refuses_it(with_muon):
    sharded = replace(with_muon, parallel=Parallel(strategy="zero2"))
    with pytest.raises(ValueError, match="muon has an optimizer of its own"):
        next(iter(fit(sharded, data.load(sharded))))
    staged = replace(with_muon, pipeline=Pipeline(chunks=2))
    with pytest.raises(ValueError, match="a stage does not call optimizer"):
        compatible(staged)
