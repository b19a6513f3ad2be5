"""Pruning of layers and models that are not ours: the zeros act, and the coverage is true."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn

from raybench.models import build
from raybench.techniques import Progress
from raybench.techniques.layers.experts import Experts
from raybench.techniques.layers.standardized import Standardized
from raybench.techniques.layers.weights import coverage
from raybench.techniques.low_rank import LowRankLinear
from raybench.techniques.monarch import MonarchLinear
from raybench.techniques.prune import Prune, prunable

HALF = Prune(final_sparsity=0.5, scope="layer")


class Wider(nn.Linear):
    """A subclass of a library or a user."""


class Attention(nn.Module):
    """Its input projection is read past the layer, as in timm's BEiT."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.qkv.weight, torch.ones(24)).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v)


class SelfAttention(nn.Module):
    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)
        self.other = sizes.get("kdim", 8)

    def forward(self, x: Tensor) -> Tensor:
        keys = x[..., : self.other]
        output: Tensor = self.attention(x, keys, keys)[0]
        return output


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cells = kind(8, 6, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.cells(x)[0]
        return output


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = Experts(Mlp(8, 12), 3)
        self.experts.draw()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 8)
        output: Tensor = self.experts(rows, torch.arange(len(rows)) % 3)
        return output


FOREIGN = {
    "convolution 1-d": lambda: nn.Conv1d(4, 6, 3),
    "convolution 3-d": lambda: nn.Conv3d(4, 6, 3, groups=2),
    "subclass of Linear": lambda: Wider(8, 6),
    "weight read past its layer": Attention,
    "attention, one projection": SelfAttention,
    "attention, three projections": lambda: SelfAttention(kdim=6, vdim=6),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "experts": Mixture,
    "monarch": lambda: MonarchLinear(nn.Linear(8, 16), 2),
    "low rank": lambda: LowRankLinear(nn.Linear(8, 16), 3),
}
INPUTS = {"convolution 1-d": (2, 4, 9), "convolution 3-d": (2, 4, 5, 5, 5)}
STANDARDIZED = [StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame]


def pruned(model: nn.Module, prune: Prune = HALF) -> nn.Module:
    """The model after `reshape` and one update of its masks, as after the last step."""
    prune.reshape(model)
    prune.after_step(model, Progress(10, 10), {}, None)
    return model


@pytest.mark.parametrize("name", FOREIGN)
def test_every_matrix_is_pruned_and_its_zeros_act(name):
    """The module computes what one with these weights at zero computes, and nothing else."""
    x = torch.randn(INPUTS.get(name, (2, 5, 8)))
    module = FOREIGN[name]().eval()
    before, copied = module(x), copy.deepcopy(module)
    matrices = [n for n, p in module.named_parameters() if p.ndim >= 2 and "bias" not in n]
    assert sorted(HALF.acts_on(module)) == sorted(matrices)
    assert coverage(module, HALF.acts_on(module)) > 0.7
    one_step = Prune(final_sparsity=0.5, scope="layer", schedule="constant", begin=1.0)
    memory: dict[str, Tensor] = {}
    one_step.after_step(module, Progress(10, 10), memory, None)
    assert sorted(memory) == sorted(matrices)
    with torch.no_grad():
        for parameter_name, parameter in copied.named_parameters():
            if parameter_name in memory:
                parameter.copy_(parameter * memory[parameter_name])
    assert torch.equal(module(x), copied(x))
    assert not torch.allclose(module(x), before)
    assert one_step.measure(module, memory)["sparsity"] == pytest.approx(0.5, abs=0.05)


def test_a_tied_weight_is_pruned_once_under_its_first_name():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    pruned(model, Prune(final_sparsity=0.5, schedule="constant", begin=1.0))
    assert HALF.acts_on(model) == ["0.weight"]
    assert int((model[2].weight == 0).sum()) == 32
    assert HALF.measure(model, {})["sparsity"] == 0.5


def test_frozen_weights_embeddings_and_norms_are_left_alone():
    model = nn.Sequential(nn.Embedding(5, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 4))
    model[2].weight.requires_grad_(False)
    assert HALF.acts_on(model) == ["3.weight"]
    HALF.finish(model, {})
    assert all(bool((model[i].weight != 0).all()) for i in range(3))


def test_the_fast_path_of_a_transformer_computes_what_the_slow_one_does():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    pruned(encoder, Prune(final_sparsity=0.6, schedule="constant", begin=1.0))
    assert coverage(encoder, HALF.acts_on(encoder)) > 0.9
    assert HALF.measure(encoder, {})["sparsity"] == pytest.approx(0.6, abs=0.001)
    x = torch.randn(3, 7, 16)
    slow = encoder(x)
    with torch.inference_mode():
        fast = encoder(x)
    assert torch.allclose(slow, fast, atol=1e-5)


class TestMinimum:
    """Scope `layer` leaves at least one weight in every matrix, as TF-MOT does."""

    def test_of_a_layer(self):
        model = nn.Sequential(nn.Linear(4, 2), nn.Linear(30, 30))
        Prune(final_sparsity=0.99, scope="layer").finish(model, {})
        assert [int(module.weight.count_nonzero()) for module in model] == [1, 9]

    @pytest.mark.parametrize("name", ["experts", "monarch"])
    def test_of_each_matrix_in_a_stack(self, name):
        module = FOREIGN[name]()
        with torch.no_grad():
            for weight in prunable(module).values():
                weight[0] *= 1e-6  # compared with the others, all of it would go
        Prune(final_sparsity=0.75, scope="layer").finish(module, {})
        for weight in prunable(module).values():
            kept = weight.count_nonzero(dim=(1, 2))
            assert (kept == max(1, round(0.25 * weight[0].numel()))).all()


class TestStandardized:
    @pytest.mark.parametrize("kind", STANDARDIZED)
    def test_before_the_first_update_it_is_the_same_layer(self, kind):
        layer, x = kind(3, 6, 3, stride=2), torch.randn(2, 3, 9, 9)
        twin = copy.deepcopy(layer)
        HALF.reshape(layer)
        assert torch.equal(layer(x), twin(x))
        assert HALF.acts_on(layer) == ["weight"]

    @pytest.mark.parametrize("kind", STANDARDIZED)
    def test_its_zeros_act_and_stay_when_it_is_settled(self, kind):
        layer, x = kind(3, 6, 3, stride=2), torch.randn(2, 3, 9, 9)
        if hasattr(layer, "gain"):
            nn.init.uniform_(layer.gain, 0.5, 2)
        pruned(layer, Prune(final_sparsity=0.5, schedule="constant", begin=1.0))
        applied = layer.applied_weight()
        assert torch.equal(applied == 0, layer.weight == 0)
        assert int((applied == 0).sum()) == applied.numel() // 2
        before = layer(x)
        HALF.finish(layer, {})
        assert torch.equal(layer.weight, applied)
        assert torch.equal(layer(x), before)

    @pytest.mark.slow
    def test_a_stored_model_is_read_back_by_its_skeleton(self):
        model = pruned(build("resnetv2_50x1_bit", classes=4, image_size=32))
        HALF.finish(model.eval(), {})
        skeleton = build("resnetv2_50x1_bit", classes=4, image_size=32).eval()
        HALF.reshape(skeleton)
        skeleton.load_state_dict(model.state_dict())
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(skeleton(x), model(x))
        layers = [module for module in model.modules() if isinstance(module, Standardized)]
        assert len(layers) > 40
        assert all((layer.applied_weight() == 0).any() for layer in layers)
        assert coverage(model, HALF.acts_on(model)) > 0.99

    def test_a_layer_that_begins_at_zero_learns(self):
        layer = StdConv2d(2, 3, 3)
        nn.init.zeros_(layer.weight)
        HALF.reshape(layer)
        layer(torch.randn(2, 2, 5, 5)).sum().backward()
        assert layer.weight.grad.abs().max() > 0
        assert HALF.measure(layer, {})["sparsity"] == 0.0


class TestMasksMadeAnew:
    ramp = Prune(final_sparsity=0.8, begin=0.1, end=0.6, frequency=2, schedule="polynomial")

    def test_where_layers_have_changed_at_the_sparsity_of_then(self):
        model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
        memory: dict[str, Tensor] = {}
        for step in range(1, 12):
            self.ramp.after_step(model, Progress(step, 20), memory, None)
        model[0] = MonarchLinear(model[0], 2)
        assert not self.ramp.restructure(model, Progress(11, 20), memory)
        assert list(memory) == ["0.factor1", "0.factor2", "1.weight"]
        now = self.ramp.sparsity_at(Progress(10, 20))  # the last update before step 11
        assert now is not None
        assert 0 < now < 0.8
        assert self.ramp.measure(model, memory)["sparsity"] == pytest.approx(now, abs=0.01)

    def test_unchanged_layers_keep_their_masks(self):
        model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
        memory: dict[str, Tensor] = {}
        for step in range(1, 12):
            self.ramp.after_step(model, Progress(step, 20), memory, None)
        before = {name: mask.clone() for name, mask in memory.items()}
        with torch.no_grad():
            model[0].weight += 1  # new masks would be others
        self.ramp.restructure(model, Progress(11, 20), memory)
        assert all(torch.equal(memory[name], before[name]) for name in before)

    def test_a_skeleton_has_none(self):
        model, memory = nn.Linear(4, 4), {}
        self.ramp.restructure(model, Progress(1, 1), memory)
        assert not memory
        assert bool((model.weight != 0).all())

    def test_an_average_of_the_weights_is_stored_with_the_masks_of_training(self):
        model, memory = nn.Linear(16, 16), {}
        for step in range(1, 21):
            self.ramp.after_step(model, Progress(step, 20), memory, None)
        masked = ~memory["weight"]
        average = copy.deepcopy(model)
        with torch.no_grad():
            # What was masked is larger than what was kept: magnitudes alone would mistake them.
            average.weight[masked] = 5.0
        self.ramp.finish(average, memory)
        assert torch.equal(average.weight, model.weight)

    def test_finish_passes_over_masks_of_layers_that_were_just_cut(self):
        model, memory = nn.Linear(16, 16), {}
        for step in range(1, 21):
            self.ramp.after_step(model, Progress(step, 20), memory, None)
        cut = nn.Linear(16, 8)
        with torch.no_grad():
            cut.weight.copy_(model.weight[:8])
        self.ramp.finish(cut, memory)
        assert self.ramp.measure(cut, memory)["sparsity"] == pytest.approx(0.8, abs=0.02)
