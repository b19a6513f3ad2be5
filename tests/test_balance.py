"""Cuts against all cuts there are, and what blocks cost."""

from __future__ import annotations

from itertools import combinations
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from raybench.models import build
from raybench.models.blocks import blocks
from raybench.parallel.pipeline.balance import (
    Costs,
    bounds,
    from_text,
    imbalance,
    measure,
    partition,
    stage_costs,
)

costs = st.lists(st.integers(0, 20), min_size=1, max_size=8)


class TestPartition:
    @given(costs=costs, stages=st.integers(1, 8))
    def test_no_cuts_are_better(self, costs, stages):
        stages = min(stages, len(costs))
        actual = partition(costs, stages)
        assert len(actual) == stages - 1
        assert from_text(",".join(map(str, actual)), len(costs), stages) == actual

        def goodness(cuts: tuple[int, ...]) -> tuple[int, int]:
            stage = stage_costs(costs, cuts)
            return max(stage), sum(cost**2 for cost in stage)

        every = combinations(range(1, len(costs)), stages - 1)
        assert goodness(tuple(actual)) == min(goodness(cuts) for cuts in every)

    def test_by_hand(self):
        assert partition([1, 1, 1, 1], 2) == [2]
        assert partition([3, 1, 1, 1], 2) == [1]
        assert partition([1, 2, 3, 4, 5], 3) == [3, 4]
        assert partition([1, 1, 5, 1, 1, 1, 1], 3) == [2, 3]  # a dear block leaves the rest even
        assert partition([2.5], 1) == []

    def test_a_hundred_blocks_and_sixteen_stages(self):
        assert len(partition(list(range(1, 101)), 16)) == 15

    @pytest.mark.parametrize("stages", [0, 4])
    def test_more_stages_than_blocks(self, stages):
        with pytest.raises(ValueError, match=f"stages is {stages}, but .* 3 blocks: use 1 to 3"):
            partition([1, 1, 1], stages)


class TestFromText:
    def test_cuts_by_hand(self):
        assert from_text("3,7", 10, 3) == [3, 7]
        assert from_text(" 3 , 7 ", 10, 3) == [3, 7]
        assert from_text("", 4, 1) == []
        assert bounds([3, 7], 10) == [(0, 3), (3, 7), (7, 10)]

    @pytest.mark.parametrize(
        ("text", "stages", "words"),
        [
            ("3;7", 3, r"'3;7' are not numbers .* blocks 0 to 9, and 3 stages need 2 cuts"),
            ("3,", 3, "are not numbers"),
            ("3.5", 2, "are not numbers"),
            ("3", 3, "cuts '3' are 1: .* 3 stages need 2 cuts"),
            ("", 2, "cuts '' are 0: .* 2 stages need 1 cut"),
            ("1,2,3", 2, "cuts '1,2,3' are 3"),
            ("0", 2, "cut 0 is out of range: .* from 1 to 9"),
            ("10", 2, "cut 10 is out of range"),
            ("-1", 2, "cut -1 is out of range"),
            ("7,3", 3, "cuts '7,3' do not increase: 3 comes after 7"),
            ("3,3", 3, "cuts '3,3' do not increase"),
            ("1", 11, "stages is 11, but the model has 10 blocks"),
        ],
    )
    def test_cuts_that_do_not_fit(self, text, stages, words):
        with pytest.raises(ValueError, match=words):
            from_text(text, 10, stages)


class Slow(nn.Module):
    """So many multiplications of a matrix with itself."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(96))
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = x @ self.weight
        return x


class Recorded(nn.Linear):
    """A linear layer that notes what it takes and gives."""

    seen: ClassVar[list[tuple[torch.Size, torch.Size, torch.dtype]]] = []

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.seen.append((x.shape, y.shape, y.dtype))
        return y


class TestMeasure:
    def test_dear_blocks_are_found(self):
        measured = measure([Slow(1), Slow(30), Slow(1)], torch.randn(96, 96), repetitions=5)
        assert len(measured.forward) == len(measured.backward) == 3
        assert measured.forward[1] > 5 * max(measured.forward[0], measured.forward[2])
        assert measured.backward[1] > 5 * max(measured.backward[0], measured.backward[2])
        assert measured.blocks[1] == measured.forward[1] + measured.backward[1]
        assert partition(measured.blocks, 3) == [1, 2]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_model_is_left_as_it_was(self, dtype):
        model = build("resnet20", classes=10, image_size=8)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        measured = measure(blocks(model), torch.randn(4, 3, 8, 8), dtype=dtype, repetitions=1)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name])
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(seconds > 0 for seconds in (*measured.forward, *measured.backward))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_blocks_hand_on_in_the_dtype_of_the_run(self, dtype, monkeypatch):
        monkeypatch.setattr(Recorded, "seen", [])
        measure([Recorded(6, 5), Recorded(5, 2)], torch.randn(4, 6), dtype=dtype, repetitions=1)
        assert Recorded.seen == 2 * [((4, 6), (4, 5), dtype), ((4, 5), (4, 2), dtype)]

    def test_blocks_without_parameters(self):
        costs = measure([nn.Flatten(), nn.Linear(12, 2), nn.ReLU()], torch.randn(4, 3, 2, 2))
        assert len(costs.blocks) == 3
        assert min(costs.forward) > 0

    def test_stages_and_their_imbalance(self):
        costs = Costs((1.0, 2.0, 3.0), (2.0, 4.0, 6.0)).blocks
        assert stage_costs(costs, [2]) == [9, 9]
        assert stage_costs(costs, [1]) == [3, 15]
        assert imbalance(stage_costs(costs, [2])) == 1
        assert imbalance(stage_costs(costs, [1])) == pytest.approx(15 / 9)
