"""Monarch matrices: the product written out block by block, the nearest one, and when they come."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gloo
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from raybench import artefact, loop
from raybench.experiment import Experiment, Parallel, Recipe
from raybench.measure import count_flops, count_parameters
from raybench.models import build
from raybench.optim import build_optimizer
from raybench.parallel import ddp
from raybench.techniques import Progress, Technique
from raybench.techniques.low_rank import LowRank, LowRankLinear
from raybench.techniques.monarch import Monarch, MonarchLinear, multiply_out, project
from trainers.monarch import base, train

SIZES = [(192, 576, 4), (576, 192, 4), (256, 256, 8), (64, 1024, 2), (1024, 64, 4)]


# --- The slow reference -------------------------------------------------------------------------


def matrix(layer: MonarchLinear) -> Tensor:
    """The layer's matrix: block (c, b) is F2[c][:, chunk b] · F1[b][chunk c, :]."""
    n, rank = layer.blocks, layer.factor1.shape[1] // layer.blocks
    rows = []
    for c in range(n):
        row = []
        for b in range(n):
            outer = layer.factor2[c][:, b * rank : (b + 1) * rank]
            inner = layer.factor1[b][c * rank : (c + 1) * rank, :]
            row.append(outer @ inner)
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows, dim=0)


def slow(layer: MonarchLinear, x: Tensor) -> Tensor:
    return F.linear(x, matrix(layer), layer.bias)


def gradients(y: Tensor, direction: Tensor, x: Tensor, layer: nn.Module) -> dict[str, Tensor]:
    names = ["x", *(name for name, _ in layer.named_parameters())]
    found = torch.autograd.grad(y, [x, *layer.parameters()], direction.to(y.dtype))
    return dict(zip(names, found, strict=True))


def assert_close(found: Tensor, wanted: Tensor, tolerance: float, name: str = "y") -> None:
    """Within `tolerance` of the largest value."""
    assert found.shape == wanted.shape
    largest = float(wanted.detach().abs().max())
    assert largest > 0, name
    assert float((found.detach() - wanted.detach()).abs().max()) <= tolerance * largest, name


LAYOUTS = {  # a tensor of the shape, as a view of one that lies otherwise
    "contiguous": lambda shape: (torch.randn(shape), lambda x: x),
    "last dimension first": lambda shape: (
        torch.randn(shape[-1:] + shape[:-1]),
        lambda x: x.movedim(0, -1),
    ),
    "every second column": lambda shape: (
        torch.randn(*shape[:-1], 2 * shape[-1]),
        lambda x: x[..., ::2],
    ),
    "one token for all": lambda shape: (torch.randn(shape[-1:]), lambda x: x.expand(shape)),
}


@st.composite
def layers(draw: st.DrawFn) -> MonarchLinear:
    blocks = draw(st.integers(2, 8))
    inputs, outputs = (blocks * draw(st.integers(1, 30)) for _ in range(2))
    torch.manual_seed(draw(st.integers(0, 99)))
    return MonarchLinear(nn.Linear(inputs, outputs, bias=draw(st.booleans())), blocks)


class TestAgainstTheReference:
    @settings(max_examples=60)
    @given(
        layers(),
        st.lists(st.integers(1, 4), max_size=3),
        st.sampled_from(sorted(LAYOUTS)),
        st.booleans(),
    )
    def test_forward_and_every_gradient(self, layer, tokens, layout, even):
        """In double precision: what is left is no rounding."""
        layer.double()
        inputs = layer.blocks * layer.factor1.shape[2]
        stored, view = LAYOUTS[layout]((*tokens, inputs))
        stored = stored.double().requires_grad_()
        x = view(stored)
        assert x.shape == (*tokens, inputs)
        y, wanted = layer(x), slow(layer, x)
        assert y.dtype == torch.float64
        assert_close(y, wanted, 1e-12)
        # A sum's gradient is one number seen everywhere: all strides are 0.
        direction = torch.ones((), dtype=y.dtype) if even else torch.randn_like(y)
        direction = direction.expand_as(y)
        found = gradients(y, direction, stored, layer)
        for name, gradient in gradients(wanted, direction, stored, layer).items():
            assert_close(found[name], gradient, 1e-11, name)

    @settings(max_examples=15)
    @given(layers())
    def test_fp32_is_as_close_as_fp32_can_be(self, layer):
        x = torch.randn(3, 5, layer.blocks * layer.factor1.shape[2], requires_grad=True)
        y, wanted = layer(x), slow(layer, x)
        assert y.dtype == torch.float32
        assert_close(y, wanted, 1e-5)
        found = gradients(y, torch.ones_like(y), x, layer)
        for name, gradient in gradients(wanted, torch.ones_like(y), x, layer).items():
            assert_close(found[name], gradient, 1e-5, name)

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize(("inputs", "outputs", "blocks"), [(64, 192, 4), (96, 24, 2)])
    def test_bf16_is_close_to_fp32(self, inputs, outputs, blocks, bias):
        layer = MonarchLinear(nn.Linear(inputs, outputs, bias=bias), blocks)
        x = torch.randn(3, 17, inputs, requires_grad=True)
        exact = layer(x)
        direction = torch.randn_like(exact)
        wanted = gradients(exact, direction, x, layer)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
            again = layer(x.bfloat16())  # as the layer before it gives it
        assert y.dtype == again.dtype == torch.bfloat16
        assert torch.equal(y, again)
        assert not torch.equal(y.float(), exact)
        assert_close(y.float(), exact, 0.03)
        for name, gradient in gradients(y, direction, x, layer).items():
            assert gradient.dtype == torch.float32
            assert_close(gradient, wanted[name], 0.03, name)

    def test_a_factor_of_zeros_leaves_the_bias(self):
        layer = MonarchLinear(nn.Linear(8, 12), 2)
        layer.factor1.data.zero_()
        assert torch.equal(layer(torch.randn(2, 3, 8)), layer.bias.expand(2, 3, 12))


# --- To a dense layer, and back -----------------------------------------------------------------


class TestMultiplyOut:
    @settings(max_examples=25)
    @given(layers())
    def test_equals_the_layer(self, layer):
        dense = multiply_out(layer)
        assert type(dense) is nn.Linear
        assert_close(dense.weight, matrix(layer), 1e-5)
        x = torch.randn(4, dense.in_features)
        assert_close(dense(x), layer(x), 1e-5)
        assert (dense.bias is None) == (layer.bias is None)
        assert all(parameter.requires_grad for parameter in dense.parameters())

    def test_shares_nothing_with_the_layer(self):
        layer = MonarchLinear(nn.Linear(8, 12), 2).double()
        dense = multiply_out(layer)
        before = copy.deepcopy(dense.state_dict())
        assert dense.weight.dtype == torch.float64
        for parameter in layer.parameters():
            parameter.data.zero_()
        assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())


class TestProject:
    @pytest.mark.parametrize(
        ("inputs", "outputs", "blocks"),
        [(48, 48, 4), (192, 48, 4), (48, 192, 4), (30, 45, 3), (64, 16, 8), (6, 10, 2)],
    )
    def test_its_error_is_that_of_the_truncated_svds(self, inputs, outputs, blocks):
        dense = nn.Linear(inputs, outputs)
        layer = project(dense, blocks)
        rank = layer.factor1.shape[1] // blocks
        weight, tail = dense.weight.detach().double(), 0.0
        for row in weight.chunk(blocks, dim=0):
            for block in row.chunk(blocks, dim=1):
                tail += float(torch.linalg.svdvals(block)[rank:].square().sum())
        assert tail > 0.01 * float(weight.square().sum())  # else nothing would be left out
        error = float((matrix(layer.double()).detach() - weight).norm())
        assert error == pytest.approx(math.sqrt(tail), rel=1e-5)
        assert torch.equal(layer.bias, dense.bias.double())

    @settings(max_examples=25)
    @given(layers())
    def test_is_exact_where_the_dense_matrix_is_a_monarch(self, layer):
        dense = multiply_out(layer)
        dense.weight.data = matrix(layer).detach()
        back = project(dense, layer.blocks)
        assert back.factor1.shape == layer.factor1.shape
        assert back.factor2.shape == layer.factor2.shape
        assert (back.bias is None) == (layer.bias is None)
        x = torch.randn(4, dense.in_features)
        assert_close(back(x), layer(x), 1e-4)

    def test_both_factors_of_a_block_have_the_same_size(self):
        layer = project(nn.Linear(48, 96), 4)
        rank = layer.factor1.shape[1] // 4
        for c in range(4):
            for b in range(4):
                outer = float(layer.factor2[c][:, b * rank : (b + 1) * rank].detach().norm())
                inner = float(layer.factor1[b][c * rank : (c + 1) * rank].detach().norm())
                assert outer == pytest.approx(inner, rel=1e-4)

    def test_does_not_touch_the_dense_layer(self):
        dense = nn.Linear(16, 32)
        before = copy.deepcopy(dense.state_dict())
        for parameter in project(dense, 2).parameters():
            parameter.data.zero_()
        assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())


# --- At the start -------------------------------------------------------------------------------


def structured(dense: nn.Linear, blocks: int, kind: str) -> nn.Module:
    if kind == "monarch":
        return MonarchLinear(dense, blocks)
    return LowRankLinear(dense, min(dense.in_features, dense.out_features) // blocks)


@pytest.mark.parametrize("kind", ["monarch", "low_rank"])
class TestFirstWeights:
    @pytest.mark.parametrize("spread", [None, 0.02])
    @pytest.mark.parametrize(("inputs", "outputs", "blocks"), SIZES)
    def test_outputs_have_the_spread_of_the_dense_layers(
        self, kind, inputs, outputs, blocks, spread
    ):
        dense = nn.Linear(inputs, outputs, bias=False)
        if spread:
            nn.init.normal_(dense.weight, std=spread)
        x = torch.randn(512, inputs)
        wanted = float(dense(x).detach().std())
        found = structured(dense, blocks, kind)(x).detach()
        assert float(found.std()) == pytest.approx(wanted, rel=0.1)
        for part in found.chunk(blocks, dim=1):  # no block is louder than the others
            assert float(part.std()) == pytest.approx(wanted, rel=0.25)

    def test_the_bias_is_a_copy(self, kind):
        dense = nn.Linear(16, 32)
        layer = structured(dense, 2, kind)
        assert torch.equal(layer.bias, dense.bias)
        layer.bias.data.zero_()
        assert dense.bias.any()
        assert structured(nn.Linear(16, 32, bias=False), 2, kind).bias is None

    @pytest.mark.parametrize(("inputs", "outputs", "blocks"), [*SIZES, (768, 3072, 4)])
    def test_parameters_of_both_kinds(self, kind, inputs, outputs, blocks):
        assert min(inputs, outputs) % blocks**2 == 0
        layer = structured(nn.Linear(inputs, outputs), blocks, kind)
        wanted = (inputs + outputs) * min(inputs, outputs) // blocks + outputs
        assert count_parameters(layer) == wanted

    def test_of_a_model_are_those_of_its_layers(self, kind):
        model = build("vit64x2", classes=10, image_size=8)
        dense = count_parameters(model)
        technique: Technique = Monarch(blocks=4) if kind == "monarch" else LowRank(blocks=4)
        technique.reshape(model)
        sizes = [(64, 192), (64, 64), (64, 256), (256, 64)] * 2
        saved = sum(i * o - (i + o) * min(i, o) // 4 for i, o in sizes)
        assert dense - count_parameters(model) == saved
        assert technique.measure(model)["structured_layers"] == 8


def test_the_rank_is_rounded_and_at_least_one():
    for inputs, outputs, blocks, rank in [
        (8, 8, 8, 1),
        (24, 48, 4, 2),
        (28, 28, 4, 2),
        (9, 9, 3, 1),
    ]:
        layer = MonarchLinear(nn.Linear(inputs, outputs), blocks)
        assert layer.factor1.shape == (blocks, blocks * rank, inputs // blocks)
        assert layer.factor2.shape == (blocks, outputs // blocks, blocks * rank)
    model = build("vit32x2", classes=10, image_size=8)
    LowRank(blocks=7).reshape(model)
    assert model.blocks[0].mlp.fc1.factor1.shape == (5, 32)  # 32 / 7 is 4.57


def test_the_factors_are_listed_by_size():
    model = build("vit64x2", classes=10, image_size=8)
    Monarch(blocks=4, layers="feed_forward").reshape(model)
    assert Monarch().measure(model) == {
        "structured_layers": 4,
        "factors": "2 x (4 of 64x16 · 4 of 16x16), 2 x (4 of 16x16 · 4 of 16x64)",
    }
    assert Monarch().measure(build("vit64x2", classes=10, image_size=8)) == {
        "structured_layers": 0,
        "factors": "",
    }


# --- Which layers -------------------------------------------------------------------------------

ATTENTION = {f"blocks.{i}.attn.{name}" for i in range(2) for name in ("qkv", "proj")}
FEED_FORWARD = {f"blocks.{i}.mlp.fc{n}" for i in range(2) for n in (1, 2)}
CHANNELS = {f"blocks.{i}.mlp_channels.fc{n}" for i in range(2) for n in (1, 2)}
TOKENS = {f"blocks.{i}.mlp_tokens.fc{n}" for i in range(2) for n in (1, 2)}

TECHNIQUES = pytest.mark.parametrize("technique", [Monarch(), LowRank()], ids=["monarch", "low"])


def replaced(model: nn.Module) -> set[str]:
    kinds = (MonarchLinear, LowRankLinear)
    return {name for name, module in model.named_modules() if isinstance(module, kinds)}


@TECHNIQUES
class TestSelection:
    @pytest.mark.parametrize(
        ("model", "layers", "leave_out", "wanted"),
        [
            ("vit32x2", "attention", "", ATTENTION),
            ("vit32x2", "feed_forward", "", FEED_FORWARD),
            ("vit32x2", "both", "", ATTENTION | FEED_FORWARD),
            ("vit32x2", "all", "", ATTENTION | FEED_FORWARD),
            ("mixer32x2", "feed_forward", "", CHANNELS),
            ("mixer32x2", "both", "", CHANNELS),
            ("mixer32x2", "all", "", CHANNELS | TOKENS),
            ("mixer32x2", "all", "*.fc2", {n for n in CHANNELS | TOKENS if n.endswith("1")}),
            ("vit32x2", "both", "*.attn.*", FEED_FORWARD),
            ("vit32x2", "feed_forward", "blocks.0.*", {"blocks.1.mlp.fc1", "blocks.1.mlp.fc2"}),
            ("vit32x2", "attention", "blocks.0.*, *.proj,", {"blocks.1.attn.qkv"}),
        ],
    )
    def test_replaces_exactly_those(self, technique, model, layers, leave_out, wanted):
        net = build(model, classes=10, image_size=32)
        before = dict(net.named_parameters())
        replace(technique, layers=layers, leave_out=leave_out).reshape(net)
        assert replaced(net) == wanted
        stay = {name: p for name, p in before.items() if name.rpartition(".")[0] not in wanted}
        now = dict(net.named_parameters())
        assert all(now[name] is parameter for name, parameter in stay.items())
        assert net(torch.randn(2, 3, 32, 32)).isfinite().all()

    def test_zero_blocks_is_the_plain_model(self, technique):
        model = build("vit32x2", classes=10, image_size=8)
        before, modules = torch.get_rng_state(), list(model.modules())
        neutral = replace(technique, blocks=0)
        neutral.reshape(model)
        assert not neutral.restructure(model, Progress(1, 1))
        neutral.finish(model)
        assert list(model.modules()) == modules
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(
        ("model", "values", "said"),
        [
            ("vit32x2", {"leave_out": "*"}, ["'both' without '*'", "a VisionTransformer"]),
            ("vit32x2", {"leave_out": "*.attn.*,*.mlp.*"}, ["leaves nothing"]),
            ("mixer32x2", {"layers": "attention"}, ["'attention'", "a MlpMixer"]),
            ("resnet20", {}, ["'both'", "leaves nothing of a ResNetCifar"]),
            ("resnet20", {"layers": "all"}, ["'all'", "leaves nothing of a ResNetCifar"]),
            (
                "vit32x2",
                {"leave_out": "blocks.0.*,blocks.2.*"},
                ["leave_out 'blocks.2.*' matches no layer", "blocks.0.attn.qkv"],
            ),
            ("vit32x2", {"layers": "attention", "leave_out": "*.fc1"}, ["'*.fc1' matches no"]),
        ],
    )
    def test_what_leaves_nothing_or_names_nothing_is_refused(self, technique, model, values, said):
        net = build(model, classes=10, image_size=32)
        with pytest.raises(ValueError, match=said[0].replace("*", r"\*")) as error:
            replace(technique, **values).reshape(net)
        assert all(part in str(error.value) for part in said), error.value
        assert "\n" not in str(error.value)
        assert not replaced(net)


class TestSizesThatDoNotDivide:
    @pytest.mark.parametrize(
        ("inputs", "outputs", "blocks", "said"),
        [
            (32, 96, 5, "5 blocks do not divide the 32 inputs of blocks.3.fc; 4 do"),
            (32, 96, 12, "12 blocks do not divide the 32 inputs of blocks.3.fc; 8 do"),
            (8, 6, 4, "4 blocks do not divide the 6 outputs of blocks.3.fc; 2 do"),
            (13, 26, 4, "4 blocks do not divide the 13 inputs of blocks.3.fc; 13 do"),
            (17, 34, 2, "17 inputs of blocks.3.fc; no number from 2 to 16 does"),
        ],
    )
    def test_are_refused_with_the_nearest_number_that_fits(self, inputs, outputs, blocks, said):
        dense = nn.Linear(inputs, outputs)
        for make in (MonarchLinear, project):
            with pytest.raises(ValueError, match=said):
                make(dense, blocks, "blocks.3.fc")

    @pytest.mark.usefixtures("no_training")
    @pytest.mark.parametrize("mode", ["from_scratch", "dense_to_sparse", "sparse_to_dense"])
    def test_are_refused_before_anything_trains(self, mode):
        experiment = tiny(monarch=Monarch(blocks=5, mode=mode))
        with pytest.raises(ValueError, match=r"32 inputs of blocks\.0\.attn\.qkv; 4 do, or leave"):
            next(train(experiment))

    def test_a_layer_that_does_not_fit_can_be_left_out(self):
        model = build("vit36x2", classes=10, image_size=8)  # the hidden width is 144
        model.blocks[1].mlp.fc1 = nn.Linear(36, 145)
        model.blocks[1].mlp.fc2 = nn.Linear(145, 36)
        with pytest.raises(ValueError, match=r"145 outputs of blocks\.1\.mlp\.fc1"):
            Monarch(blocks=3).reshape(copy.deepcopy(model))
        Monarch(blocks=3, leave_out="blocks.1.mlp.*").reshape(model)
        assert len(replaced(model)) == 6


# --- Learning rates -----------------------------------------------------------------------------


def scales(model: nn.Module, recipe: Recipe) -> dict[str, tuple[float, float]]:
    """Factor of the learning rate, and decay, of every parameter, as the optimizer has them."""
    groups = build_optimizer(model, recipe).param_groups
    found = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    return {name: found[id(parameter)] for name, parameter in model.named_parameters()}


class TestLearningRates:
    def test_a_factor_of_fewer_inputs_takes_larger_steps(self):
        model = nn.ModuleDict(
            {
                "up": MonarchLinear(nn.Linear(768, 3072), 4),
                "down": MonarchLinear(nn.Linear(3072, 768), 4),
                "low": LowRankLinear(nn.Linear(768, 3072), 192),
                "dense": nn.Linear(3, 3),
            }
        )
        assert scales(model, Recipe(optimizer="adamw", weight_decay=0.03)) == {
            "up.factor1": (2.0, 0.03),
            "up.factor2": (2.0, 0.03),
            "up.bias": (1.0, 0.0),
            "down.factor1": (2.0, 0.03),
            "down.factor2": (8.0, 0.03),
            "down.bias": (1.0, 0.0),
            "low.factor1": (0.5, 0.03),
            "low.factor2": (2.0, 0.03),
            "low.bias": (1.0, 0.0),
            "dense.weight": (1.0, 0.03),
            "dense.bias": (1.0, 0.0),
        }

    @pytest.mark.parametrize(
        "technique",
        [Monarch(), Monarch(mode="dense_to_sparse", switch_at=0.0), LowRank()],
        ids=["from_scratch", "projected", "low_rank"],
    )
    def test_scale_lr_may_be_off(self, technique):
        for on in (True, False):
            model = build("vit32x2", classes=10, image_size=8)
            chosen = replace(technique, scale_lr=on)
            chosen.reshape(model)
            chosen.restructure(model, Progress(0, 1))
            found = {scale for scale, _ in scales(model, Recipe()).values()}
            assert (found == {1.0}) == (not on)
            assert len(replaced(model)) == 8

    def test_a_layer_that_is_the_whole_model_has_its_own(self):
        layer = MonarchLinear(nn.Linear(8, 32), 2)
        assert scales(layer, Recipe())["factor1"][0] == layer.lr_scale["factor1"] == 1.0
        assert scales(layer, Recipe())["factor2"][0] == layer.lr_scale["factor2"] == 8 / 4 / 2
        wide = MonarchLinear(nn.Linear(64, 16), 2)
        assert scales(wide, Recipe())["factor2"][0] == 64 / 8 / 2

    def test_the_loops_rate_is_multiplied_by_it(self, optimizers):
        experiment = tiny(monarch=Monarch(blocks=4))
        for epoch in train(experiment):
            (optimizer,) = optimizers
            assert {group["lr_scale"] for group in optimizer.param_groups} == {1.0, 2.0, 8.0}
            for group in optimizer.param_groups:
                assert group["lr"] == epoch.metrics["lr"] * group["lr_scale"] > 0


@pytest.fixture
def optimizers(monkeypatch: pytest.MonkeyPatch) -> list[torch.optim.Optimizer]:
    """Every optimizer that the loop builds."""
    built: list[torch.optim.Optimizer] = []

    def note(*arguments: Any, **named: Any) -> torch.optim.Optimizer:
        built.append(build_optimizer(*arguments, **named))
        return built[-1]

    monkeypatch.setattr(ddp, "build_optimizer", note)
    return built


class TestContinuing:
    @pytest.mark.parametrize("kind", ["sgd", "adamw"])
    def test_moments_stay_with_the_parameters_that_stay(self, kind):
        recipe = Recipe(optimizer=kind, lr=0.01)
        technique = Monarch(blocks=4, layers="attention", mode="dense_to_sparse", switch_at=0.0)
        model = build("vit32x2", classes=10, image_size=8)
        first = build_optimizer(model, recipe)
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        first.step()
        stayed = {p: copy.deepcopy(first.state[p]) for p in model.parameters()}
        assert technique.restructure(model, Progress(0, 1))

        second = build_optimizer(model, recipe, continuing=first)
        new = {name for name, p in model.named_parameters() if p not in stayed}
        # A bias begins anew as well: it is the new layer's.
        assert {name.rpartition(".")[0] for name in new} == ATTENTION
        assert len(new) == 3 * len(ATTENTION)
        for name, parameter in model.named_parameters():
            moments = {k: v for k, v in second.state.get(parameter, {}).items() if v is not None}
            if name in new:
                assert not any(value.any() for value in moments.values()), name
                continue
            assert moments, name
            for moment, value in moments.items():
                assert torch.equal(value, stayed[parameter][moment])
                assert value.any()
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        second.step()
        assert all(parameter in second.state for parameter in model.parameters())
        assert len(second.state) == len(list(model.parameters()))  # and none of what went

    def test_without_it_every_moment_is_new(self):
        model = nn.Linear(3, 3)
        first = build_optimizer(model, Recipe())
        model(torch.randn(2, 3)).sum().backward()
        first.step()
        assert first.state
        assert not build_optimizer(model, Recipe()).state

    def test_in_the_loop(self, optimizers):
        monarch = Monarch(layers="attention", mode="dense_to_sparse", switch_at=0.5)
        epochs = list(train(tiny(monarch=monarch)))
        assert len(epochs) == len(optimizers) == 2
        steps = {int(state["step"]) for state in optimizers[0].state.values()}
        # The first one's states went on as the second one's; those of what went stood still.
        assert steps == {4, 8}
        new = [s for s in optimizers[1].state.values() if int(s["step"]) == 4]
        assert len(new) == 3 * len(ATTENTION)
        assert len(optimizers[1].state) == len(list(plain().parameters())) + len(ATTENTION)


# --- For a part of the training -----------------------------------------------------------------


def tiny(**values: Any) -> Experiment:
    """Two blocks of width 32 on 129 digits of 8x8 pixels: 2 epochs of 4 steps in fp32."""
    recipe = replace(base.recipe, epochs=2, batch=32, crop=1, precision="fp32")
    experiment = replace(base, model="vit32x2", image_size=8, subset=0.1, recipe=recipe)
    return replace(experiment, **values)


def longer(monarch: Monarch | None) -> Experiment:
    """Four epochs of 2 steps."""
    return tiny(monarch=monarch, recipe=replace(tiny().recipe, epochs=4, batch=64))


def plain() -> nn.Module:
    return build("vit32x2", classes=10, image_size=8)


def ended(experiment: Experiment, path: Path) -> nn.Module:
    """The model that the run leaves in its file."""
    for _ in train(experiment, store=path):
        pass
    return artefact.load(path)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it trained")

    monkeypatch.setattr(loop, "batches", fail)


MODES = pytest.mark.parametrize("mode", ["dense_to_sparse", "sparse_to_dense"])


class TestModes:
    @pytest.mark.parametrize(
        ("switch_at", "after"), [(0.0, 0), (0.25, 1), (0.26, 2), (0.75, 3), (0.8, 4), (1.0, 4)]
    )
    def test_change_at_the_first_epoch_that_begins_at_or_after(self, switch_at, after):
        """After so many of four epochs; four is at the end of the last one."""
        for mode, before, then in (("sparse_to_dense", 8, 0), ("dense_to_sparse", 0, 8)):
            technique = Monarch(mode=mode, switch_at=switch_at)
            model = plain()
            technique.reshape(model)
            found = []
            for epoch in range(4):
                changed = technique.restructure(model, Progress(5 * epoch, 20))
                assert changed == (epoch == after)
                found.append(len(replaced(model)))
            technique.finish(model)
            assert [*found, len(replaced(model))] == [before] * after + [then] * (5 - after)

    @MODES
    @pytest.mark.parametrize(("switch_at", "after"), [(0.0, 0), (0.5, 2), (0.51, 3), (1.0, 3)])
    def test_columns_of_the_loop_follow(self, mode, switch_at, after):
        """The last epoch's are of the finished model."""
        experiment = longer(Monarch(mode=mode, switch_at=switch_at))
        found = [epoch.metrics for epoch in train(experiment)]
        before, then = (8, 0) if mode == "sparse_to_dense" else (0, 8)
        counts = [metrics["structured_layers"] for metrics in found]
        assert counts == [before] * after + [then] * (4 - after)
        assert [bool(metrics["factors"]) for metrics in found] == [count > 0 for count in counts]
        # Bytes are those of the file that stopping would leave: of the same model all along.
        sizes = [metrics["model_bytes"] for metrics in found]
        assert sizes == [sizes[-1]] * 4
        structured, dense = plain(), plain()
        Monarch().reshape(structured)
        last = structured if mode == "dense_to_sparse" else dense
        assert found[-1]["parameters"] == count_parameters(last)
        assert count_parameters(structured) < count_parameters(dense)

    def test_multiplied_out_the_outputs_do_not_jump(self):
        technique = Monarch(mode="sparse_to_dense", switch_at=0.5)
        model, x = plain(), torch.randn(5, 3, 8, 8)
        technique.reshape(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(3):
            F.cross_entropy(model(torch.randn(8, 3, 8, 8)), torch.randint(10, (8,))).backward()
            optimizer.step()
        before, products = model(x), {n: matrix(model.get_submodule(n)) for n in replaced(model)}
        assert not technique.restructure(model, Progress(4, 10))
        assert technique.restructure(model, Progress(5, 10))
        assert_close(model(x), before, 1e-5)
        assert set(products) == ATTENTION | FEED_FORWARD
        for name, product in products.items():
            assert_close(model.get_submodule(name).weight, product, 1e-5, name)

    @pytest.mark.parametrize("switch_at", [0.5, 1.0])
    def test_sparse_to_dense_leaves_the_plain_models_file(self, tmp_path, switch_at):
        experiment = tiny(monarch=Monarch(mode="sparse_to_dense", switch_at=switch_at))
        *_, last = train(experiment, store=tmp_path / "m")
        with safe_open(tmp_path / "m", framework="pt") as file:
            assert set(file.keys()) == set(plain().state_dict())
        back = artefact.load(tmp_path / "m")
        assert [type(module) for module in back.modules()] == [type(m) for m in plain().modules()]
        assert last.metrics["model_bytes"] == (tmp_path / "m").stat().st_size
        # What a plain run starts from, and its first weights are these.
        started = loop.first_model(tiny(start_from=str(tmp_path / "m")), 10)
        x = torch.randn(5, 3, 8, 8)
        assert torch.equal(started.eval()(x), back(x))

    def test_dense_to_sparse_leaves_factors(self, tmp_path):
        model = ended(tiny(monarch=Monarch(mode="dense_to_sparse")), tmp_path / "m")
        assert replaced(model) == ATTENTION | FEED_FORWARD
        assert model(torch.randn(2, 3, 8, 8)).isfinite().all()

    def test_a_projection_at_once_begins_at_the_trained_weights(self, tmp_path):
        dense = ended(tiny(), tmp_path / "dense")
        monarch = Monarch(blocks=2, mode="dense_to_sparse", switch_at=0.0)
        still = replace(tiny().recipe, lr=1e-30)  # the steps are too small to round to any
        experiment = tiny(monarch=monarch, start_from=str(tmp_path / "dense"), recipe=still)
        found = ended(replace(experiment, seed=3), tmp_path / "monarch")
        assert replaced(found) == ATTENTION | FEED_FORWARD
        for name in replaced(found):
            wanted = project(dense.get_submodule(name), 2)
            assert_close(matrix(found.get_submodule(name)), matrix(wanted), 1e-5, name)
        stay = {n: t for n, t in found.state_dict().items() if n in dense.state_dict()}
        assert len(stay) == len(dense.state_dict()) - 8
        assert all(torch.equal(tensor, dense.state_dict()[name]) for name, tensor in stay.items())

    def test_at_the_end_a_dense_run_is_projected(self, tmp_path):
        dense = ended(tiny(), tmp_path / "dense")
        found = ended(tiny(monarch=Monarch(mode="dense_to_sparse", switch_at=1.0)), tmp_path / "m")
        for name in ATTENTION | FEED_FORWARD:
            wanted = project(dense.get_submodule(name), 4)
            assert_close(matrix(found.get_submodule(name)), matrix(wanted), 1e-5, name)
        assert torch.equal(found.head.weight, dense.head.weight)

    def test_at_the_end_a_monarch_run_is_multiplied_out(self, tmp_path):
        sparse = ended(tiny(monarch=Monarch()), tmp_path / "sparse")
        found = ended(tiny(monarch=Monarch(mode="sparse_to_dense", switch_at=1.0)), tmp_path / "m")
        for name in ATTENTION | FEED_FORWARD:
            weight = found.get_submodule(name).weight
            assert_close(weight, matrix(sparse.get_submodule(name)), 1e-5, name)
        assert torch.equal(found.head.weight, sparse.head.weight)

    @MODES
    def test_a_run_resumed_before_or_after_the_change_ends_bit_for_bit_alike(self, mode, tmp_path):
        """The change is at the start of the third epoch of four."""
        experiment = longer(Monarch(mode=mode, switch_at=0.5))
        whole = []
        for epoch in train(experiment, store=tmp_path / "whole"):
            whole.append(epoch.metrics)
            if not epoch.last:
                epoch.save(tmp_path / f"{epoch.number}.pt")
        counts = [metrics["structured_layers"] for metrics in whole]
        assert counts[0] == counts[1] != counts[2] == counts[3]
        wanted = artefact.load(tmp_path / "whole").state_dict()
        for number in (1, 2, 3):
            rest = train(experiment, resume=tmp_path / f"{number}.pt", store=tmp_path / "resumed")
            metrics = [epoch.metrics for epoch in rest]
            assert len(metrics) == 4 - number
            for name in ("loss", "validation_loss", "lr", "model_bytes", "structured_layers"):
                assert [m[name] for m in metrics] == [m[name] for m in whole[number:]], name
            assert metrics[-1]["test_loss"] == whole[-1]["test_loss"]
            found = artefact.load(tmp_path / "resumed").state_dict()
            assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())

    def test_the_modes_begin_as_what_they_are(self):
        """The first epoch of each is that of the plain run, or of the one with factors."""
        first = {
            mode: next(train(tiny(monarch=monarch))).metrics["loss"]
            for mode, monarch in [
                ("dense", None),
                *[(m, Monarch(mode=m)) for m in ("from_scratch", "dense_to_sparse")],
                ("sparse_to_dense", Monarch(mode="sparse_to_dense")),
            ]
        }
        assert first["dense_to_sparse"] == first["dense"]
        assert first["sparse_to_dense"] == first["from_scratch"] != first["dense"]


# --- Two workers --------------------------------------------------------------------------------


def fitted(mode: str, workers: int) -> dict[str, Any]:
    """What a run gives in this process, alone or as one of the workers."""
    monarch = Monarch(mode=mode, switch_at=0.5)
    experiment = tiny(monarch=monarch, parallel=Parallel(workers=workers))
    losses, counts = [], []
    for epoch in train(experiment):
        losses += [epoch.metrics["loss"], epoch.metrics["validation_loss"]]
        counts.append(epoch.metrics["structured_layers"])
        last = epoch.metrics
    return {"losses": losses, "counts": counts, "test_loss": last["test_loss"]}


def worker(rank: int) -> dict[str, Any]:
    """What a run of each mode gives in one of two workers."""
    return {mode: fitted(mode, 2) for mode in ("sparse_to_dense", "dense_to_sparse")}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The findings of two workers: this process and a second one."""
    return gloo.together(worker, tmp_path_factory.mktemp("workers"))


@pytest.mark.workers
@pytest.mark.timeout(150)
@MODES
def test_two_workers_change_the_layers_as_one_does(together, mode):
    alone = fitted(mode, 1)
    assert alone["counts"] == ([8, 0] if mode == "sparse_to_dense" else [0, 8])
    assert len(alone["losses"]) == 4
    for found in together:
        assert found[mode]["counts"] == alone["counts"]
        assert found[mode]["losses"] == pytest.approx(alone["losses"], abs=1e-4)
        assert found[mode]["test_loss"] == pytest.approx(alone["test_loss"], abs=1e-4)
    # And as each other, to the last bit.
    assert together[0][mode]["losses"] == together[1][mode]["losses"]


# --- Costs --------------------------------------------------------------------------------------


class TestFlops:
    @pytest.mark.parametrize("blocks", [2, 4, 8])
    def test_of_one_layer_are_two_a_parameter_of_the_factors(self, blocks):
        layer = MonarchLinear(nn.Linear(192, 384), blocks)
        flops = count_flops(nn.Sequential(nn.Flatten(), layer), 8)
        rank = round(192 / blocks**2)
        first, second = blocks * (blocks * rank) * (192 // blocks), 384 * blocks * rank
        assert (layer.factor1.numel(), layer.factor2.numel()) == (first, second)
        assert flops == 2 * (first + second)

    def test_of_a_vit_are_fewer_by_what_the_layers_save(self):
        dense = build("vit64x2", classes=10, image_size=8)
        model = copy.deepcopy(dense)
        Monarch(blocks=4).reshape(model)
        tokens, saved = 4 + 1, 0
        for name in replaced(model):
            layer, weight = model.get_submodule(name), dense.get_submodule(name).weight
            saved += weight.numel() - layer.factor1.numel() - layer.factor2.numel()
        assert saved > 0
        assert count_flops(dense, 8) - count_flops(model, 8) == 2 * tokens * saved


# --- Mixers, and pretrained weights -------------------------------------------------------------


class TestMixers:
    @pytest.mark.parametrize(
        ("name", "image_size", "parameters", "tokens"),
        [
            ("mixer512x8", 32, 17_110_026, 64),
            ("mixer_s16_224", 32, 17_110_026, 64),
            ("mixer_b16_224", 224, 59_119_162, 196),
        ],
    )
    def test_sizes(self, name, image_size, parameters, tokens):
        with torch.device("meta"):
            model = build(name, classes=10, image_size=image_size)
            assert model(torch.empty(2, 3, image_size, image_size)).shape == (2, 10)
        assert count_parameters(model) == parameters
        assert model.blocks[0].mlp_tokens.fc1.in_features == tokens

    def test_a_small_one_maps_images_to_logits(self):
        model = build("mixer32x2", classes=7, image_size=8).eval()
        nn.init.normal_(model.head.weight)  # timm's is zero at first
        x = torch.randn(3, 3, 8, 8)
        logits = model(x)
        assert logits.shape == (3, 7)
        assert torch.allclose(model(x[:1]), logits[:1], atol=1e-5)  # no image sees another
        assert not torch.equal(logits[0], logits[1])


TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights as timm has them, for 224 pixels and 1000 classes."""
    path = tmp_path_factory.mktemp("pretrained") / "weights.pth"
    torch.manual_seed(5)
    torch.save(timm.create_model(TINY).state_dict(), path)
    return path


class TestPretrained:
    @pytest.mark.parametrize("image_size", [224, 8])
    def test_a_file_of_them_is_where_a_run_begins(self, pretrained, image_size):
        values = {"model": TINY, "image_size": image_size}
        model = loop.first_model(tiny(start_from=f"timm:{pretrained}", **values), 10)
        weights, own = torch.load(pretrained), model.state_dict()
        assert set(own) == set(weights)
        # Another image size has other patches and positions, other classes another head.
        anew = {"head.weight", "head.bias"}
        if image_size != 224:
            anew |= {"patch_embed.proj.weight", "pos_embed"}
        assert {name for name in own if own[name].shape != weights[name].shape} == anew
        assert all(torch.equal(own[n], tensor) for n, tensor in weights.items() if n not in anew)
        assert model(torch.randn(2, 3, image_size, image_size)).shape == (2, 10)
        fresh = loop.first_model(tiny(**values), 10).state_dict()
        assert not torch.equal(fresh["blocks.0.mlp.fc1.weight"], own["blocks.0.mlp.fc1.weight"])

    @pytest.mark.usefixtures("no_training")
    def test_a_missing_file_is_refused_before_anything_trains(self, tmp_path):
        experiment = tiny(model=TINY, start_from=f"timm:{tmp_path}/nowhere.pth")
        with pytest.raises(ValueError, match=r"there is no file .*nowhere\.pth"):
            next(train(experiment))

    @pytest.mark.parametrize("content", [b"no weights", {"a": torch.zeros(3)}, [1, 2]])
    def test_a_file_of_something_else_is_refused(self, tmp_path, content):
        path = tmp_path / "other.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(ValueError, match=r"other\.pth"):
            loop.first_model(tiny(model=TINY, start_from=f"timm:{path}"), 10)

    def test_no_source_is_refused(self):
        with pytest.raises(ValueError, match="timm:hub"):
            loop.first_model(tiny(model=TINY, start_from="timm:"), 10)

    @pytest.mark.parametrize("model", ["resnet20", "vit32x2"])
    def test_a_model_that_timm_has_not_is_refused(self, pretrained, model):
        with pytest.raises(ValueError, match=f"no model '{model}'"):
            loop.first_model(tiny(model=model, start_from=f"timm:{pretrained}"), 10)
