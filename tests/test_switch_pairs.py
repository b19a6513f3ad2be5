"""Experts beside factors in one model: what each acts on, and two epochs of both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_monarch import replaced
from small_switch import PLAIN, tiny

from raybench import artefact
from raybench.models import build
from raybench.techniques import Progress, Technique
from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from raybench.techniques.switch import mixtures
from raybench.training.trainer import train

FACTORS = pytest.mark.parametrize(
    ("field", "factors"),
    [
        ("monarch", Monarch(blocks=2)),
        ("monarch", Monarch(blocks=2, mode="dense_to_sparse", switch_at=0.5)),
        ("monarch", Monarch(blocks=2, mode="sparse_to_dense", switch_at=0.5)),
        ("low_rank", LowRank(blocks=2)),
    ],
    ids=["from_scratch", "dense_to_sparse", "sparse_to_dense", "low_rank"],
)
SHARED = replace(PLAIN, blocks="1", shared_expert=True, jitter=0.1)


@FACTORS
def test_factors_leave_experts_and_router_alone(field, factors):
    model = build("vit32x2", classes=10, image_size=8)
    SHARED.reshape(model)
    mixture = next(mixtures(model))
    factors.reshape(model)
    factors.restructure(model, Progress(0, 1, 1), {})
    names = {name.rpartition(".")[0] for name in factors.acts_on(model)}
    wanted = {f"blocks.{i}.attn.{part}" for i in (0, 1) for part in ("qkv", "proj")}
    wanted |= {f"blocks.{n}" for n in ("0.mlp.fc1", "0.mlp.fc2")}
    wanted |= {f"blocks.1.mlp.shared.{n}" for n in ("fc1", "fc2")}  # the block's own feed-forward
    assert names == wanted
    assert next(mixtures(model)) is mixture
    ours = {n.removeprefix("blocks.1.mlp.") for n in SHARED.acts_on(model)}
    assert ours == {"router.weight", *(f"experts.{k}{n}" for k in ("weight", "bias") for n in "12")}
    assert not set(SHARED.acts_on(model)) & set(factors.acts_on(model))
    assert model(torch.randn(2, 3, 8, 8)).isfinite().all()


@pytest.mark.slow
@FACTORS
def test_two_epochs_of_both_have_both_effects_and_reload(tmp_path, field, factors: Technique):
    recipe = replace(tiny().recipe, epochs=2)
    experiment = tiny(switch=SHARED, recipe=recipe, **{field: factors})
    *_, last = train(experiment, store=tmp_path / "m")
    model = artefact.load(tmp_path / "m")
    dense = getattr(factors, "mode", "") == "sparse_to_dense"
    assert len(replaced(model)) == (0 if dense else 8) == last.metrics["structured_layers"]
    assert len(list(mixtures(model))) == 1
    assert last.metrics["router_entropy"] > 0
    alone = [epoch.metrics for epoch in train(tiny(switch=SHARED, recipe=recipe))][-1]
    assert alone["test_loss"] != last.metrics["test_loss"]
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(model(x), artefact.load(tmp_path / "m")(x))
