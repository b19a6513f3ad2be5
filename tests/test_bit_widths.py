"""Bits by sensitivity: the choice within a budget, and what a run makes of it."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_quantized import network, run

from raybench.techniques.layers.bit_widths import BITS, choose, sensitivity
from raybench.techniques.layers.learned_step import fit_weight_steps, rounded_weight
from raybench.techniques.layers.quantized_layers import quantized_layers
from raybench.techniques.layers.rounded_weights import rounded_weights
from raybench.techniques.quantize import Quantize

seeds = st.integers(0, 2**20)


class TestBudget:
    @settings(max_examples=60)
    @given(
        sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
        seed=seeds,
        share=st.floats(0, 1),
    )
    def test_the_choice_is_that_of_brute_force(self, sizes, seed, share):
        torch.manual_seed(seed)
        costs = [dict(zip(BITS, torch.rand(len(BITS)).tolist(), strict=True)) for _ in sizes]
        least, most = 2 * sum(sizes), 8 * sum(sizes)
        budget = round(least + share * (most - least))

        def cost(bits: tuple[int, ...]) -> float:
            return sum(c[b] for c, b in zip(costs, bits, strict=True))

        fitting = [
            bits
            for bits in itertools.product(BITS, repeat=len(sizes))
            if sum(s * b for s, b in zip(sizes, bits, strict=True)) <= budget
        ]
        actual = choose(sizes, costs, budget)
        assert tuple(actual) in fitting
        assert cost(tuple(actual)) == pytest.approx(min(cost(bits) for bits in fitting))

    def test_a_budget_below_the_least_is_refused(self):
        with pytest.raises(ValueError, match="20 bits are the fewest"):
            choose([10], [dict.fromkeys(BITS, 1.0)], 19)

    def test_sensitivity_is_the_weighted_squared_error(self):
        weight, squared = torch.randn(3, 4), torch.rand(3, 4)
        on_grid = rounded_weight(weight, fit_weight_steps(weight, 3), 3)
        expected = sum(
            g * (w - q) ** 2
            for g, w, q in zip(
                squared.flatten().tolist(),
                weight.flatten().tolist(),
                on_grid.flatten().tolist(),
                strict=True,
            )
        )
        assert sensitivity(weight, squared, 3) == pytest.approx(expected, rel=1e-4)
        assert sensitivity(weight, squared, 8) < sensitivity(weight, squared, 2)

    def test_the_layer_that_matters_gets_the_bits(self):
        model, memory = network(), {}
        technique = Quantize(budget_bytes=1900)
        technique.reshape(model)
        weights = rounded_weights(model)
        for name, weight in weights.items():
            importance = 1000.0 if name == "3.weight" else 1.0
            memory[f"squared gradient of {name}"] = torch.full_like(weight.raw, importance)
        bits = technique.plan(model, memory)
        assert bits["3.weight"] > bits["7.weight"]
        used = sum(weight.raw.numel() * bits[n] for n, weight in weights.items())
        assert used <= 8 * 1900
        more = {**bits, "7.weight": bits["7.weight"] + 1}
        assert sum(weight.raw.numel() * more[n] for n, weight in weights.items()) > 15200

    @pytest.mark.parametrize("begin", [0.5, 1.0])
    def test_a_run_keeps_to_its_budget(self, begin):
        technique = Quantize(budget_bytes=1900, begin=begin)
        model = run(technique)
        technique.finish(model, {})
        layers = quantized_layers(model).values()
        assert sum(la.weight.numel() * int(la.weight_bits) for la in layers) <= 8 * 1900
        assert technique.measure(model, {})["weight_bits"] == pytest.approx(
            sum(la.weight.numel() * int(la.weight_bits) for la in layers)
            / sum(la.weight.numel() for la in layers)
        )

    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_steps_learn_at_the_pace_of_the_bits_that_the_budget_gives(self, bits):
        alike = network()
        shared = copy.deepcopy(alike)
        Quantize(bits=bits).reshape(alike)
        first, *inner, last = (la.weight.numel() for la in quantized_layers(alike).values())
        Quantize(budget_bytes=first + last + bits * sum(inner) // 8).reshape(shared)
        for one, other in zip(*map(quantized_layers, (alike, shared)), strict=True):
            assert one == other
            paces = [quantized_layers(m)[one].lr_scale for m in (alike, shared)]
            assert paces[0] == paces[1]
