"""Quantize beside other techniques: the file shrinks in proportion, and what cannot stand there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from raybench import artefact, data
from raybench.experiment import Experiment
from raybench.techniques.layers.rounded_weights import rounded_weights
from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from raybench.techniques.quantize import Quantize
from raybench.techniques.switch import Switch
from raybench.training.loop import fit


@pytest.fixture
def vit(tiny: Experiment) -> Experiment:
    recipe = replace(tiny.recipe, optimizer="adamw", lr=1e-3)
    return replace(tiny, model="vit32x2", recipe=recipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    "beside",
    [
        {"switch": Switch(experts=8, blocks="all")},
        {"switch": Switch(experts=4, top_k=2, shared_expert=True, upcycle=True)},
        {"monarch": Monarch(blocks=2)},
        {"low_rank": LowRank(blocks=2)},
    ],
    ids=["experts", "shared", "monarch", "low_rank"],
)
def test_the_file_shrinks_in_proportion_and_gives_back_every_bit(vit, tmp_path, beside):
    experiment = replace(vit, **beside)
    sizes = {}
    for bits in (0, 2, 8):
        path = tmp_path / f"{bits}"
        of = replace(experiment, quantize=Quantize(bits=bits, ends_bits=bits or 8))
        *_, last = fit(of, data.load(of), store=path)
        sizes[bits] = last.metrics["model_bytes"]
    model = artefact.load(path)
    assert last.metrics["weight_bits"] == 8
    weights = rounded_weights(model).values()
    values = sum(weight.raw.numel() for weight in weights)
    # In fp32 4 bytes a weight, in 8 bits less than one, in 2 less than a quarter of one.
    assert sizes[0] - sizes[8] > 2.9 * values
    assert sizes[8] - sizes[2] > 0.5 * values
    images = data.load(experiment)
    x, y = next(data.evaluation_batches(images, images.test))
    with torch.inference_mode():
        right = float((model(x).argmax(1) == y).float().mean())
    if len(y) == len(images.test):
        assert right == pytest.approx(last.metrics["test_accuracy"])


class TestApart:
    def holds(self, experiment: Experiment) -> set[str]:
        actual = (one for one in Quantize.apart if one.when is None or one.when(experiment))
        return {one.other for one in actual}

    def test_each_says_why_and_when(self):
        for one in Quantize.apart:
            assert one.reason
            assert bool(one.when) == bool(one.condition)

    def test_a_budget_is_of_the_whole_model_and_its_gradients(self, tiny):
        always = {"zero3", "zero3_offload", "expert"}
        shared = {"zero1", "zero2", "pipeline"}
        beside = {"monarch": Monarch(), "switch": Switch()}
        assert self.holds(replace(tiny, quantize=Quantize(), **beside)) == always
        budget = Quantize(budget_bytes=100_000)
        assert self.holds(replace(tiny, quantize=budget, **beside)) == always | shared

    @pytest.mark.parametrize(
        ("mode", "switch_at", "begin", "apart"),
        [
            ("from_scratch", 0.8, 0.0, False),
            ("dense_to_sparse", 0.0, 0.0, False),
            ("dense_to_sparse", 0.5, 0.5, True),
            ("dense_to_sparse", 0.5, 0.6, False),
            ("sparse_to_dense", 0.6, 0.9, True),  # it changes at the third of two epochs: the end
        ],
    )
    def test_monarch_changes_layers_before_they_are_rounded(
        self, vit, mode, switch_at, begin, apart
    ):
        monarch = Monarch(mode=mode, switch_at=switch_at)
        experiment = replace(vit, monarch=monarch, quantize=Quantize(begin=begin))
        assert ("monarch" in self.holds(experiment)) == apart

    @pytest.mark.parametrize("mode", ["dense_to_sparse", "sparse_to_dense"])
    def test_layers_of_the_second_half_are_quantized_in_it(self, vit, tmp_path, mode):
        monarch = Monarch(blocks=2, mode=mode, switch_at=0.5)
        quantize = Quantize(bits=3, begin=0.75)
        experiment = replace(vit, monarch=monarch, quantize=quantize)
        *_, last = fit(experiment, data.load(experiment), store=tmp_path / "m")
        model = artefact.load(tmp_path / "m")
        bits = [weight.bits for weight in rounded_weights(model).values()]
        assert bits == [8, *[3] * (len(bits) - 2), 8]
        assert len(bits) == (2 + 2 * 8 if mode == "dense_to_sparse" else 2 + 8)
        assert last.metrics["weight_bits"] < 4
