"""Every technique on models of others: it works with its true coverage, or is refused.

All are tried by `make nightly`; a sample that changes by the day is tried always.
"""

from __future__ import annotations

import copy
import math
import random
from datetime import UTC, datetime
from typing import Any

import foreign_models
import hooked
import pytest
import torch
from torch import Tensor, nn

from raybench.experiment import technique_types
from raybench.reports.technique_matrix import covered
from raybench.techniques import Technique
from raybench.techniques.distill import Distill
from raybench.techniques.layers.weights import coverage, weights
from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from raybench.techniques.prune import Prune
from raybench.techniques.prune_channels import PruneChannels
from raybench.techniques.quantize import Quantize
from raybench.techniques.switch import Switch

pytestmark = pytest.mark.timeout(60)  # a refusal, too, takes seconds

SIZE, CLASSES = 32, 7
SPARSITY, BITS = 0.6, 4
SETTINGS: dict[str, Technique] = {
    "switch": Switch(experts=2, blocks="all"),
    "monarch": Monarch(blocks=2),
    "low_rank": LowRank(blocks=2),
    "prune_channels": PruneChannels(ratio=0.5, round_to=4, at=0.5),
    "prune": Prune(final_sparsity=SPARSITY, begin=0.1, end=0.9, frequency=1),
    "quantize": Quantize(bits=BITS, ends_bits=BITS, activation_bits=32, begin=0.3),
    "distill": Distill(teacher="teacher"),
}
NAMES = [(m, t) for m in foreign_models.FACTORIES for t in technique_types()]
DAY = datetime.now(UTC).date().toordinal()
SAMPLE = random.Random(DAY).sample(NAMES, 16)


def made(model: str) -> nn.Module:
    torch.manual_seed(0)
    plain = foreign_models.FACTORIES[model](classes=CLASSES, image_size=SIZE)
    assert isinstance(plain, nn.Module)
    return plain


def check(model: str, name: str) -> None:
    technique = SETTINGS.get(name) or technique_types()[name]()
    plain = made(model)
    before = {n: value.clone() for n, value in plain.state_dict().items()}
    expected = covered(plain, technique)
    if isinstance(expected, str):
        assert len(expected.splitlines()) == 1
        assert len(expected) > 20, f"{expected!r} is no reason"
        return
    run = hooked.train(plain, technique, SIZE, CLASSES)
    assert all(torch.equal(value, before[n]) for n, value in plain.state_dict().items())
    assert 0 < expected <= 1
    assert run.after_finish.shape == (hooked.IMAGES, CLASSES)
    assert torch.isfinite(run.after_finish).all()
    assert not run.untouched, f"{name} acts on what gets no gradient: {sorted(run.untouched)[:3]}"
    _without_gradients_alike(run.model, run.after_finish)
    if name in EFFECTS:
        EFFECTS[name](technique, run, plain)
    missing = [c for c in technique.columns if run.metrics.get(c) is None]
    assert not missing, f"{name} declares columns that it does not report"


def _without_gradients_alike(model: nn.Module, logits: Tensor) -> None:
    """In evaluation torch's encoders may go another way, which has to know the technique too."""
    torch.manual_seed(0)
    x = torch.randn(hooked.IMAGES, 3, SIZE, SIZE)
    with_gradients = model(x).detach()
    with torch.inference_mode():
        without = model(x)
    torch.testing.assert_close(without, with_gradients, rtol=1e-3, atol=1e-4)
    assert logits.shape == without.shape


def _pruned(technique: Technique, run: hooked.Hooked, plain: nn.Module) -> None:
    parameters = dict(run.model.named_parameters())
    kinds = {weight.name: weight.kind for weight in weights(run.model)}
    values = {name: parameters[name] for name in technique.acts_on(run.model)}
    total = sum(value.numel() for value in values.values())
    zeros = sum(int((value == 0).sum()) for value in values.values())
    assert zeros / total == pytest.approx(SPARSITY, abs=0.01)
    assert run.metrics["sparsity"] == pytest.approx(zeros / total, abs=1e-6)
    share = sum(value.numel() for value in values.values()) / sum(
        parameter.numel() for parameter in parameters.values()
    )
    assert coverage(run.model, run.acted) == pytest.approx(share, abs=0.01)
    # They have to be zeros in the products as well; an LSTM's are made inside.
    seen = [value for name, value in values.items() if kinds.get(name) != "recurrent"]
    least = sum(int((value == 0).sum()) for value in seen)
    x = torch.randn(2, 3, SIZE, SIZE)
    assert hooked.zeros_used(run.model, x) >= 0.99 * least, "zeros of which none act"


def _quantized(technique: Technique, run: hooked.Hooked, plain: nn.Module) -> None:
    acted = set(technique.acts_on(run.model))
    assert acted
    for weight in weights(run.model):
        if weight.name in acted:
            rows = weight.value.detach().flatten(0, weight.stacked).flatten(1)
            assert max(len(row.unique()) for row in rows) <= 2**BITS, weight.name
            # Whoever reads the weight, past its layer too, gets what is stored.
            read = getattr(weight.module, weight.attribute)
            torch.testing.assert_close(read, weight.value, rtol=1e-6, atol=0, msg=weight.name)


def _replaced(kind: str) -> Any:
    def test(technique: Technique, run: hooked.Hooked, plain: nn.Module) -> None:
        layers = [m for m in run.model.modules() if type(m).__name__ == kind]
        assert layers
        assert run.metrics["structured_layers"] == len(layers)
        factors = {id(layer.get_parameter(f)) for layer in layers for f in ("factor1", "factor2")}
        acted = {id(p) for n, p in run.model.named_parameters() if n in run.acted}
        assert factors <= acted
        assert sum(p.numel() for p in run.model.parameters()) < sum(
            p.numel() for p in plain.parameters()
        )

    return test


def _cut(technique: Technique, run: hooked.Hooked, plain: nn.Module) -> None:
    sizes = [sum(p.numel() for p in m.parameters()) for m in (run.model, plain)]
    assert sizes[0] < sizes[1]
    assert 0 < float(run.metrics["channels"]) < 1


def _switched(technique: Technique, run: hooked.Hooked, plain: nn.Module) -> None:
    experts = [m for m in run.model.modules() if type(m).__name__ == "Experts"]
    assert experts
    acted = {id(p) for n, p in run.model.named_parameters() if n in run.acted}
    for layer in experts:
        assert id(layer.get_parameter("weight1")) in acted
    assert float(run.metrics["router_entropy"]) > 0
    assert math.isfinite(float(run.metrics["load_cv"]))


def _taught(technique: Technique, run: hooked.Hooked, plain: nn.Module) -> None:
    # Of the first step at least: the teacher is the untrained model.
    assert float(run.metrics["distillation_loss"]) > 0


EFFECTS: dict[str, Any] = {
    "switch": _switched,
    "monarch": _replaced("MonarchLinear"),
    "low_rank": _replaced("LowRankLinear"),
    "prune_channels": _cut,
    "prune": _pruned,
    "quantize": _quantized,
    "distill": _taught,
}


@pytest.mark.parametrize(("model", "name"), SAMPLE, ids=lambda value: f"{value}-day{DAY}")
def test_a_technique_of_today_on_a_foreign_model(model, name):
    check(model, name)


@pytest.mark.nightly
@pytest.mark.parametrize("name", technique_types())
@pytest.mark.parametrize("model", foreign_models.FACTORIES)
def test_a_technique_on_a_foreign_model(model, name):
    check(model, name)


@pytest.mark.parametrize("model", foreign_models.FACTORIES)
def test_pruning_fits_every_model(model):
    """None of them is refused by a technique that knows all kinds of weights."""
    reached = covered(made(model), Prune())
    assert isinstance(reached, float), reached
    assert reached > 0.3


@pytest.mark.slow
def test_there_are_twenty_that_classify():
    assert len(foreign_models.FACTORIES) == 20
    for model in foreign_models.FACTORIES:
        plain = copy.deepcopy(made(model)).eval()
        assert plain(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, CLASSES)
