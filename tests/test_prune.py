"""Pruning: the schedule step by step, the masks weight by weight."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raybench.models import build
from raybench.techniques import Progress
from raybench.techniques.prune import (
    Prune,
    apply_masks,
    constant_sparsity,
    magnitude_masks,
    polynomial_decay,
    prunable,
)
from trainers.pruning import one_shot

sparsities = st.floats(0, 1, exclude_max=True)


# --- The schedule -------------------------------------------------------------------------------


def reference_updates(begin: int, end: int, frequency: int, last: int) -> list[int]:
    """Steps up to `last` at which TF-MOT's `_should_prune_in_step` is true, by counting."""
    found, due = [], begin
    for step in range(last + 1):
        if step == due:
            due += frequency
            if end == -1 or step <= end:
                found.append(step)
    return found


class TestTFMOT:
    @given(
        initial=sparsities,
        final=sparsities,
        begin=st.integers(0, 60),
        length=st.integers(1, 120),
        power=st.floats(0.5, 5),
        frequency=st.integers(1, 50),
    )
    def test_polynomial_decay_step_for_step(self, initial, final, begin, length, power, frequency):
        end, last = begin + length, 200
        updates = reference_updates(begin, end, frequency, last)
        for step in range(last + 1):
            found = polynomial_decay(
                step,
                initial_sparsity=initial,
                final_sparsity=final,
                begin=begin,
                end=end,
                power=power,
                frequency=frequency,
            )
            if step in updates:
                left = (1 - (step - begin) / length) ** power
                assert found == pytest.approx(initial * left + final * (1 - left), abs=1e-12)
            else:
                assert found is None

    @given(
        target=sparsities,
        begin=st.integers(0, 60),
        end=st.just(-1) | st.integers(0, 200),
        frequency=st.integers(1, 50),
    )
    def test_constant_sparsity_step_for_step(self, target, begin, end, frequency):
        updates = reference_updates(begin, end, frequency, 200)
        for step in range(201):
            found = constant_sparsity(
                step, target_sparsity=target, begin=begin, end=end, frequency=frequency
            )
            assert found == (target if step in updates else None)

    def test_end_minus_one_is_for_ever(self):
        settings = {"target_sparsity": 0.5, "begin": 7, "frequency": 10}
        assert constant_sparsity(7 + 10**9, end=-1, **settings) == 0.5
        assert constant_sparsity(7 + 10**9, end=10**8, **settings) is None

    def test_a_ramp_that_frequency_does_not_divide_never_reaches_the_target(self):
        ramp = {"initial_sparsity": 0.0, "final_sparsity": 0.8, "power": 3.0, "begin": 0}
        said = [polynomial_decay(step, end=10, frequency=4, **ramp) for step in range(100)]
        assert [step for step, value in enumerate(said) if value is not None] == [0, 4, 8]
        assert max(value for value in said if value is not None) < 0.8

    def test_begin_after_the_last_step_never_prunes(self):
        ramp = {"initial_sparsity": 0.2, "final_sparsity": 0.8, "power": 3.0}
        steps = range(100)
        assert {polynomial_decay(s, begin=100, end=200, frequency=1, **ramp) for s in steps} == {
            None
        }
        assert {
            constant_sparsity(s, target_sparsity=0.5, begin=100, end=-1, frequency=1) for s in steps
        } == {None}

    def test_the_drawn_schedule(self):
        """The picture in the module's docstring, once more as numbers."""
        drawn = {2: 0.1, 4: 0.1 + 0.7 * 37 / 64, 6: 0.1 + 0.7 * 7 / 8, 8: 0.1 + 0.7 * 63 / 64}
        drawn |= {10: 0.8}
        for step in range(20):
            found = polynomial_decay(
                step,
                initial_sparsity=0.1,
                final_sparsity=0.8,
                begin=2,
                end=10,
                power=3.0,
                frequency=2,
            )
            assert found == (pytest.approx(drawn[step], abs=1e-15) if step in drawn else None)


def plan(prune: Prune, steps: int) -> dict[int, float]:
    """Step -> sparsity of all updates of a run of so many steps."""
    said = {step: prune.sparsity_at(Progress(step, steps)) for step in range(1, steps + 1)}
    return {step: value for step, value in said.items() if value is not None}


class TestPlan:
    @settings(max_examples=300)
    @given(
        steps=st.integers(1, 400),
        begin=st.floats(0, 1, exclude_max=True),
        span=st.floats(1e-3, 1),
        frequency=st.integers(1, 500),
        initial=sparsities,
        final=sparsities,
    )
    def test_the_last_update_of_a_ramp_reaches_the_target(
        self, steps, begin, span, frequency, initial, final
    ):
        prune = Prune(
            final_sparsity=max(initial, final),
            initial_sparsity=min(initial, final),
            begin=begin,
            end=max(min(1.0, begin + span), math.nextafter(begin, 1)),
            frequency=frequency,
        )
        updates = plan(prune, steps)
        assert updates[max(updates)] == max(initial, final)
        rising = list(updates.values())
        assert rising == sorted(rising)

    @given(steps=st.integers(1, 400), begin=st.floats(0, 1), frequency=st.integers(1, 500))
    def test_constant_sparsity_always_prunes(self, steps, begin, frequency):
        prune = Prune(schedule="constant", final_sparsity=0.7, begin=begin, frequency=frequency)
        updates = plan(prune, steps)
        assert set(updates.values()) == {0.7}
        assert min(updates) == max(1, round(begin * steps))

    def test_an_ordinary_run(self):
        prune = Prune(final_sparsity=0.8, begin=0.1, end=0.5, power=1.0, frequency=20)
        assert plan(prune, 200) == pytest.approx(
            {20: 0.0, 40: 0.2, 60: 0.4, 80: 0.6, 100: 0.8}, abs=1e-12
        )

    def test_a_run_shorter_than_one_period_still_prunes(self):
        prune = Prune(final_sparsity=0.8, begin=0.1, end=0.6, frequency=1000)
        assert plan(prune, 10) == {1: 0.0, 10: 0.8}
        assert plan(prune, 1) == {1: 0.8}

    def test_a_ramp_that_begins_with_the_last_step_reaches_the_target_there(self):
        prune = Prune(final_sparsity=0.8, begin=0.95, end=1.0)
        assert plan(prune, 5)[5] == 0.8

    def test_one_shot_prunes_at_the_last_step_alone(self):
        for steps in (1, 7, 100):
            assert list(plan(one_shot, steps)) == [steps]


# --- The masks ----------------------------------------------------------------------------------


def distinct(*shapes: tuple[int, ...], seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of which no two have the same magnitude."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [math.prod(shape) for shape in shapes]
    values = 1.0 + torch.randperm(sum(sizes), generator=generator)
    values *= torch.where(torch.rand(sum(sizes), generator=generator) < 0.5, -1.0, 1.0)
    pieces = values.split(sizes)
    return {str(i): p.view(s) for i, (p, s) in enumerate(zip(pieces, shapes, strict=True))}


def sorted_out(values: list[float], sparsity: float) -> set[int]:
    """Indices that pruning drops: all but the `round((1 - sparsity) * n)` largest."""
    order = sorted(range(len(values)), key=lambda i: abs(values[i]), reverse=True)
    return set(order[round((1 - sparsity) * len(values)) :])


def dropped(mask: torch.Tensor) -> set[int]:
    return set((~mask).flatten().nonzero().flatten().tolist())


class TestMasks:
    @given(st.lists(st.integers(1, 30), min_size=1, max_size=4), sparsities)
    def test_counts_are_exact(self, sizes, sparsity):
        weights = distinct(*((size, 3) for size in sizes))
        for name, mask in magnitude_masks(weights, sparsity, "layer").items():
            assert int(mask.sum()) == round((1 - sparsity) * weights[name].numel())
        masks = magnitude_masks(weights, sparsity, "global")
        total = sum(weight.numel() for weight in weights.values())
        assert sum(int(mask.sum()) for mask in masks.values()) == round((1 - sparsity) * total)

    @given(st.integers(0, 100), sparsities)
    def test_layer_masks_equal_sorting_each(self, seed, sparsity):
        weights = distinct((4, 2, 3, 3), (5, 7), seed=seed)
        for name, mask in magnitude_masks(weights, sparsity, "layer").items():
            assert mask.shape == weights[name].shape
            assert dropped(mask) == sorted_out(weights[name].flatten().tolist(), sparsity)

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
            self.prune.after_step(self.model, Progress(self.step, STEPS), self.memory)

    def zeros(self) -> set[tuple[str, int]]:
        found = {name: (weight == 0) for name, weight in prunable(self.model).items()}
        return {(name, i) for name, zero in found.items() for i in dropped(~zero)}


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
        prune.finish(run.model)
        after = run.model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_finish_before_the_last_update_prunes_to_the_end(self):
        """What stopping now would store."""
        run = Run(ramp)
        run.advance(1)
        assert not run.zeros()
        ramp.finish(run.model)
        assert ramp.measure(run.model)["sparsity"] == pytest.approx(0.9, abs=0.01)

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
        assert Prune().measure(model)["sparsity"] == 0.0
        model.layer1[0].conv1.weight.data.zero_()
        total = sum(weight.numel() for weight in prunable(model).values())
        assert Prune().measure(model)["sparsity"] == pytest.approx(16 * 16 * 9 / total)
