"""Pruning: the masks weight by weight, and what training leaves of them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raybench.models import build
from raybench.techniques import Progress
from raybench.techniques.prune import Prune, apply_masks, magnitude_masks, prunable

sparsities = st.floats(0, 1, exclude_max=True)


def distinct(*shapes: tuple[int, ...], seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of which no two have the same magnitude."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [math.prod(shape) for shape in shapes]
    values = 1.0 + torch.randperm(sum(sizes), generator=generator)
    values *= torch.where(torch.rand(sum(sizes), generator=generator) < 0.5, -1.0, 1.0)
    pieces = values.split(sizes)
    return {str(i): p.view(s) for i, (p, s) in enumerate(zip(pieces, shapes, strict=True))}


def sorted_out(values: list[float], sparsity: float, least: int = 0) -> set[int]:
    """Indices that pruning drops: all but the `round((1 - sparsity) * n)` largest."""
    order = sorted(range(len(values)), key=lambda i: abs(values[i]), reverse=True)
    return set(order[max(least, round((1 - sparsity) * len(values))) :])


def dropped(mask: torch.Tensor) -> set[int]:
    return set((~mask).flatten().nonzero().flatten().tolist())


class TestMasks:
    @given(st.lists(st.integers(1, 30), min_size=1, max_size=4), sparsities)
    def test_counts_are_exact(self, sizes, sparsity):
        weights = distinct(*((size, 3) for size in sizes))
        for name, mask in magnitude_masks(weights, sparsity, "layer").items():
            kept = max(1, round((1 - sparsity) * weights[name].numel()))  # as TF-MOT
            assert int(mask.sum()) == kept
        masks = magnitude_masks(weights, sparsity, "global")
        total = sum(weight.numel() for weight in weights.values())
        assert sum(int(mask.sum()) for mask in masks.values()) == round((1 - sparsity) * total)

    @given(st.integers(0, 100), sparsities)
    def test_layer_masks_equal_sorting_each(self, seed, sparsity):
        weights = distinct((4, 2, 3, 3), (5, 7), seed=seed)
        for name, mask in magnitude_masks(weights, sparsity, "layer").items():
            assert mask.shape == weights[name].shape
            assert dropped(mask) == sorted_out(weights[name].flatten().tolist(), sparsity, 1)

    @given(st.integers(0, 100), sparsities)
    def test_global_masks_equal_sorting_all(self, seed, sparsity):
        weights = distinct((4, 2, 3, 3), (5, 7), seed=seed)
        masks = magnitude_masks(weights, sparsity, "global")
        values = [v for weight in weights.values() for v in weight.flatten().tolist()]
        flat = torch.cat([masks[name].flatten() for name in weights])
        assert dropped(flat) == sorted_out(values, sparsity)

    def test_global_takes_from_the_layer_of_small_weights(self):
        weights = {"small": torch.full((10,), 0.1), "large": torch.full((10,), 9.0)}
        masks = magnitude_masks(weights, 0.5, "global")
        assert not masks["small"].any()
        assert masks["large"].all()
        assert int(magnitude_masks(weights, 0.5, "layer")["large"].sum()) == 5

    @pytest.mark.parametrize("scope", ["global", "layer"])
    def test_channels_last_weights_get_the_same_masks(self, scope):
        weights = distinct((4, 3, 3, 3), (6, 4, 5, 5))
        turned = {n: w.to(memory_format=torch.channels_last) for n, w in weights.items()}
        assert not turned["0"].is_contiguous()
        one, other = (magnitude_masks(w, 0.6, scope) for w in (weights, turned))
        assert all(torch.equal(one[name], other[name]) for name in weights)

    def test_ties_do_not_change_the_count(self):
        masks = magnitude_masks({"w": torch.ones(10, 10)}, 0.25, "global")
        assert int(masks["w"].sum()) == 75

    def test_zeros_of_either_sign_go_first(self):
        weights = {"w": torch.tensor([0.5, -0.0, 1e-30, 0.0, -2.0])}
        assert dropped(magnitude_masks(weights, 0.4, "layer")["w"]) == {1, 3}

    def test_nan_is_kept_and_stays_visible(self):
        """A diverged weight must not be hidden as a zero."""
        layer = nn.Linear(4, 1, bias=False)
        layer.weight.data = torch.tensor([[1.0, math.nan, 0.1, 0.2]])
        masks = magnitude_masks({"weight": layer.weight}, 0.5, "layer")
        assert dropped(masks["weight"]) == {2, 3}
        apply_masks(layer, masks)
        assert layer.weight[0, 1].isnan()

    def test_masked_weights_become_plus_zero_even_from_nan(self):
        layer = nn.Linear(3, 1, bias=False)
        layer.weight.data = torch.tensor([[-1.0, math.nan, -math.inf]])
        apply_masks(layer, {"weight": torch.zeros(1, 3, dtype=torch.bool)})
        assert layer.weight.tolist() == [[0.0, 0.0, 0.0]]
        assert not layer.weight.signbit().any()

    def test_prunable_are_weights_of_convolutions_and_linear_layers(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
        assert list(prunable(model)) == ["0.weight", "3.weight"]
        model[0].weight.requires_grad_(False)
        assert list(prunable(model)) == ["3.weight"]
        assert list(prunable(nn.Linear(2, 2))) == ["weight"]


# --- In training --------------------------------------------------------------------------------

STEPS = 12


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    ).to(memory_format=torch.channels_last)


class Run:
    """SGD with momentum and weight decay on noise, pruned after every step."""

    def __init__(self, prune: Prune) -> None:
        self.prune, self.model, self.memory, self.step = prune, small(), {}, 0
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self.generator = torch.Generator().manual_seed(1)

    def advance(self, steps: int = 1) -> None:
        for _ in range(steps):
            x = torch.randn(16, 3, 4, 4, generator=self.generator)
            y = torch.randint(5, (16,), generator=self.generator)
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
            self.step += 1
            self.prune.after_step(self.model, Progress(self.step, STEPS), self.memory, None)

    def zeros(self) -> set[tuple[str, int]]:
        actual = {name: (weight == 0) for name, weight in prunable(self.model).items()}
        return {(name, i) for name, zero in actual.items() for i in dropped(~zero)}


ramp = Prune(final_sparsity=0.9, initial_sparsity=0.2, begin=0.2, end=0.8, frequency=2)
ways = pytest.mark.parametrize(
    "prune",
    [
        ramp,
        Prune(**{**vars(ramp), "scope": "layer"}),
        Prune(schedule="constant", final_sparsity=0.6, begin=0.3, frequency=3),
    ],
    ids=["global", "layer", "constant"],
)


class TestTraining:
    @ways
    def test_a_pruned_weight_is_never_revived(self, prune):
        run, before = Run(prune), set()
        for _ in range(STEPS):
            run.advance()
            assert before <= run.zeros()
            before = run.zeros()
        total = sum(weight.numel() for weight in prunable(run.model).values())
        assert len(before) == pytest.approx(prune.final_sparsity * total, abs=2)

    def test_zeros_are_exact_though_momentum_pushes(self):
        """Momentum of the pruned weights is not zero, and yet they are, after every step."""
        run = Run(ramp)
        run.advance(STEPS - 1)
        pushed = run.optimizer.state[run.model[0].weight]["momentum_buffer"]
        assert pushed[~run.memory["0.weight"]].abs().max() > 0
        run.advance()
        for name, weight in prunable(run.model).items():
            gone = weight[~run.memory[name]]
            assert len(gone)
            assert not gone.signbit().any()
            assert (gone == 0).all()

    def test_nothing_is_pruned_before_the_beginning(self):
        run = Run(Prune(final_sparsity=0.9, begin=0.5, end=0.9, frequency=1))
        run.advance(STEPS // 2 - 1)
        assert not run.zeros()
        assert not run.memory

    @ways
    def test_finish_is_a_no_op_after_the_last_update(self, prune):
        run = Run(prune)
        run.advance(STEPS)
        before = copy.deepcopy(run.model.state_dict())
        prune.finish(run.model, {})
        after = run.model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_finish_before_the_last_update_prunes_to_the_end(self):
        """What stopping now would store."""
        run = Run(ramp)
        run.advance(1)
        assert not run.zeros()
        ramp.finish(run.model, {})
        assert ramp.measure(run.model, {})["sparsity"] == pytest.approx(0.9, abs=0.01)

    def test_deepcopy_works_in_the_middle_and_goes_on_alike(self):
        run = Run(ramp)
        run.advance(6)
        twin = copy.deepcopy(run)
        run.advance(3)
        assert run.zeros() != twin.zeros()
        twin.advance(3)
        for one, other in zip(run.model.parameters(), twin.model.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_state_dict_keys_stay_those_of_the_plain_model(self):
        run = Run(ramp)
        run.advance(STEPS)
        assert list(run.model.state_dict()) == list(small().state_dict())
        assert run.zeros()

    def test_sparsity_is_counted_on_the_weights(self):
        model = build("resnet20", classes=10, image_size=8)
        assert Prune().measure(model, {})["sparsity"] == 0.0
        model.layer1[0].conv1.weight.data.zero_()
        total = sum(weight.numel() for weight in prunable(model).values())
        assert Prune().measure(model, {})["sparsity"] == pytest.approx(16 * 16 * 9 / total)
