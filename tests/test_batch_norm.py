"""Batch norm in chunks: its running statistics against those of one whole batch."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raybench.models import build
from raybench.parallel.pipeline.batch_norm import Deferred, commit, prepare

MODES = ["corrected", "deferred", "per_chunk"]


def norm(**settings) -> nn.BatchNorm2d:
    """With statistics and weights that are not those of a fresh one."""
    module = nn.BatchNorm2d(5, **settings)
    for tensor in (module.weight, module.bias, module.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(module.running_var, 0.5, 2)
    return module


def batches(steps: int, size: int) -> torch.Tensor:
    scale, shift = torch.rand(5, 1, 1) * 5, torch.randn(5, 1, 1) * 10
    return torch.randn(steps, size, 5, 3, 4) * scale + shift


def whole(module: nn.Module, steps: torch.Tensor) -> nn.Module:
    """A copy that saw every batch whole."""
    module = copy.deepcopy(module)
    for x in steps:
        module(x)
    return module


def chunked(module: nn.Module, steps: torch.Tensor, chunks: int, mode: str) -> nn.Module:
    """A copy that saw every batch in chunks."""
    module = copy.deepcopy(module)
    prepare(module, mode, chunks)
    for x in steps:
        for chunk in x.chunk(chunks):
            module(chunk)
        commit(module)
    return module


class TestDeferred:
    @given(
        chunks=st.sampled_from([1, 2, 3, 4, 6, 12]),
        steps=st.integers(1, 4),
        momentum=st.sampled_from([0.1, 0.01, 1.0, None]),
    )
    @settings(max_examples=40)
    def test_statistics_are_those_of_whole_batches(self, chunks, steps, momentum):
        first, seen = norm(momentum=momentum), batches(steps, 12)
        expected, actual = whole(first, seen), chunked(first, seen, chunks, "deferred")
        assert type(actual) is Deferred
        assert torch.allclose(actual.running_mean, expected.running_mean, rtol=1e-5, atol=1e-6)
        assert torch.allclose(actual.running_var, expected.running_var, rtol=1e-5)
        assert actual.num_batches_tracked == expected.num_batches_tracked == steps

    def test_statistics_of_chunks_of_unequal_size(self):
        first, x = norm(), batches(1, 11)[0]
        expected, actual = whole(first, x[None]), copy.deepcopy(first)
        prepare(actual, "deferred", 3)
        for chunk in x.split([2, 8, 1]):
            actual(chunk)
        commit(actual)
        assert torch.allclose(actual.running_mean, expected.running_mean, rtol=1e-5)
        assert torch.allclose(actual.running_var, expected.running_var, rtol=1e-5)

    def test_large_means_cancel_no_digits(self):
        """Mean 1000, deviation 0.1: a sum of squares in fp32 would have lost the variance."""
        first, seen = norm(momentum=1.0), 1000 + 0.1 * torch.randn(1, 64, 5, 3, 4)
        actual = chunked(first, seen, 4, "deferred")
        assert torch.allclose(actual.running_var, whole(first, seen).running_var, rtol=1e-3)

    def test_nothing_is_updated_before_commit_and_nothing_twice(self):
        module = norm()
        before = copy.deepcopy(module.state_dict())
        prepare(module, "deferred", 2)
        module(torch.randn(4, 5, 2, 2))
        assert_same(module.state_dict(), before)
        commit(module)
        assert not torch.equal(module.running_mean, before["running_mean"])
        after = copy.deepcopy(module.state_dict())
        commit(module)
        assert_same(module.state_dict(), after)

    def test_evaluation_uses_the_running_statistics_and_gathers_nothing(self):
        module, x = norm(), torch.randn(4, 5, 2, 2)
        plain = copy.deepcopy(module).eval()
        prepare(module, "deferred", 2)
        assert torch.equal(module.eval()(x), plain(x))
        commit(module)
        assert_same(module.state_dict(), plain.state_dict())

    def test_a_batch_norm_of_another_kind_is_refused(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        with pytest.raises(ValueError, match=r"does not support 1, a BatchNorm1d: use 'corrected'"):
            prepare(model, "deferred", 2)


class TestCorrected:
    @pytest.mark.parametrize("chunks", [1, 2, 4, 8])
    def test_all_chunks_of_a_batch_weigh_as_one_update(self, chunks):
        """Over chunks of the same content the running mean moves as by one whole batch."""
        first = norm()
        part = batches(1, 4)[0]
        seen = part.repeat(chunks, 1, 1, 1)[None]
        expected, actual = whole(first, seen), chunked(first, seen, chunks, "corrected")
        assert torch.allclose(actual.running_mean, expected.running_mean, rtol=1e-4, atol=1e-6)

    def test_momentum(self):
        model = nn.Sequential(norm(), norm(momentum=0.3), norm(momentum=None), nn.Linear(2, 2))
        prepare(model, "corrected", 4)
        actual = [module.momentum for module in model[:3]]
        assert actual[:2] == pytest.approx([1 - 0.9**0.25, 1 - 0.7**0.25])
        assert actual[2] is None

    def test_uncorrected_chunks_weigh_three_times_as_much(self):
        """What the correction is for: 1 - 0.9^4 is 0.34."""
        first, x = norm(), torch.full((8, 5, 1, 1), 3.0)
        moved = {
            mode: float(
                (chunked(first, x[None], 4, mode).running_mean - first.running_mean).abs().sum()
            )
            for mode in MODES
        }
        assert moved["corrected"] == pytest.approx(moved["deferred"], rel=1e-4)
        assert moved["per_chunk"] == pytest.approx(moved["deferred"] * 3.439, rel=1e-3)


class TestEveryMode:
    @pytest.mark.parametrize("mode", MODES)
    def test_outputs_and_gradients_are_those_of_plain_chunks_to_the_last_bit(self, mode):
        model = build("resnet20", classes=10, image_size=8)
        plain = copy.deepcopy(model)
        prepare(model, mode, 2)
        x = torch.randn(8, 3, 8, 8).to(memory_format=torch.channels_last)
        for each in (model, plain):
            for chunk in x.chunk(2):
                each(chunk).square().sum().backward()
        for own, other in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(own.grad, other.grad)
        y = model(x)
        assert torch.equal(y, plain(x))

    @pytest.mark.parametrize("mode", MODES)
    def test_state_dict_fits_the_plain_model(self, mode):
        model = build("mobilenet_v2", classes=10, image_size=32)
        plain = copy.deepcopy(model)
        prepare(model, mode, 4)
        assert_same(model.state_dict(), plain.state_dict())
        optimized = list(model.parameters())
        model.load_state_dict(plain.state_dict())
        assert all(one is other for one, other in zip(model.parameters(), optimized, strict=True))

    def test_per_chunk_is_the_plain_module(self):
        module = norm()
        prepare(module, "per_chunk", 8)
        assert type(module) is nn.BatchNorm2d
        assert module.momentum == 0.1

    def test_bf16_activations(self):
        first = norm()
        seen = batches(2, 12).bfloat16()
        expected, actual = whole(first, seen), chunked(first, seen, 4, "deferred")
        assert torch.allclose(actual.running_mean, expected.running_mean, rtol=1e-5, atol=1e-5)
        assert torch.allclose(actual.running_var, expected.running_var, rtol=1e-4)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
