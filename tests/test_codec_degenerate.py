"""The wire codec over degenerate tensors: its counters and its refusals."""

from __future__ import annotations

import math

import pytest
import torch
from codec_tensors import DEGENERATE, TILE, drawn, low_bits, seeds, shapes, steps, there_and_back
from hypothesis import given
from hypothesis import strategies as st

from raybench.parallel.pipeline.codec import LARGEST, Codec


class TestDegenerate:
    @pytest.mark.parametrize("stochastic", [False, True], ids=["nearest", "stochastic"])
    @pytest.mark.parametrize("bits", [16, 8, 4, 2])
    @pytest.mark.parametrize("name", DEGENERATE)
    def test_what_is_decoded_is_finite_and_near(self, name, bits, stochastic):
        x, codec = DEGENERATE[name], Codec(bits)
        y = there_and_back(codec, x, stochastic=stochastic)
        assert y.isfinite().all()
        finite = bool(x.isfinite().all())
        assert codec.health.nonfinite_tensors == (not finite)
        sane = x.nan_to_num(0.0, 0.0, 0.0)
        if bits == 16:
            assert torch.allclose(y, sane, rtol=2**-8)
            return
        sane = sane.clamp(-LARGEST, LARGEST)
        assert ((y.double() - sane.double()).abs() <= steps(sane, bits) * (1 + 1e-6)).all()

    @pytest.mark.parametrize("bits", [8, 4, 2])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_the_largest_numbers_of_a_narrow_type_stay_finite(self, bits, dtype):
        largest = torch.finfo(dtype).max
        x = torch.tensor([largest, -largest, largest / 2, 0] * 40, dtype=dtype)
        assert there_and_back(Codec(bits), x).isfinite().all()

    @pytest.mark.parametrize("bits", [8, 4, 2])
    def test_no_noise_carries_the_largest_value_beyond_the_last_code(self, bits):
        """256 in a byte is 0. Every scale that bf16 has, whose inverse may be rounded up."""
        last = 2**bits - 1
        scale = (1 + torch.arange(128) / 128).repeat_interleave(512).unsqueeze(1)
        x = (last * scale).repeat(1, TILE)
        y = there_and_back(
            Codec(bits), x, stochastic=True, generator=torch.Generator().manual_seed(0)
        )
        assert (y >= (last - 1) * scale).all()

    def test_an_outlier_costs_its_own_tile_alone(self):
        x = drawn((4, TILE), 0)
        x[1, 5] = 1e6
        y = there_and_back(Codec(4), x)
        assert (y - x)[[0, 2, 3]].abs().max() < 0.3
        assert y[1, 5] == pytest.approx(1e6, rel=0.01)

    @pytest.mark.parametrize("bits", [8, 4, 2])
    def test_a_dead_boundary_between_live_ones(self, bits):
        """What a buffer held before is gone: a constant follows NaN, follows noise."""
        codec = Codec(bits)
        there_and_back(codec, drawn((3, 70), 0))
        there_and_back(codec, torch.full((3, 70), math.nan))
        assert not there_and_back(codec, torch.zeros(3, 70)).any()
        assert not there_and_back(codec, torch.zeros(3, 70), stochastic=True).any()


class TestHealth:
    def test_counts(self):
        codec = Codec(4)
        x = drawn((5, TILE), 0)
        x[1], x[3] = 0.0, 2.5
        codec.encode(x)
        codec.encode(DEGENERATE["NaN"])
        codec.encode(torch.tensor([3e38, 1e38, 1.0]))
        health = codec.health
        assert (health.tensors, health.values) == (3, 5 * TILE + 200 + 3)
        assert health.tiles == 5 + 4 + 1
        assert health.zero_range_tiles == 2
        assert health.nonfinite_tensors == 1
        assert health.clipped == 2

    def test_two_codecs_count_apart(self):
        one, other = Codec(4), Codec(4)
        one.encode(torch.zeros(3))
        assert (one.health.tensors, other.health.tensors) == (1, 0)

    def test_a_view_of_autograd_is_not_touched(self):
        x = drawn((10, 30), 0).requires_grad_()
        before = x.detach().clone()
        for bits in (32, 16, 8, 4, 2):
            codec = Codec(bits)
            assert not there_and_back(codec, x, stochastic=True).requires_grad
            assert not there_and_back(codec, x.t()).requires_grad  # not contiguous
        assert torch.equal(x, before)


class TestRefusals:
    def test_bits(self):
        with pytest.raises(ValueError, match="bits is 3: use 32, 16, 8, 4, 2"):
            Codec(3)

    @pytest.mark.parametrize("tile", [0, 12, -8])
    def test_tile(self, tile):
        with pytest.raises(ValueError, match=f"tile is {tile}: use a multiple of 8"):
            Codec(4, tile)

    @given(tile=st.sampled_from([8, 16, 24, 200]), bits=low_bits, shape=shapes, seed=seeds)
    def test_other_tiles_work(self, tile, bits, shape, seed):
        x = drawn(shape, seed)
        y = there_and_back(Codec(bits, tile), x)
        assert (y - x).abs().max() <= (x.max().clamp(min=0) - x.min().clamp(max=0)) / (2**bits - 2)
