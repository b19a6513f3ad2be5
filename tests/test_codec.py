"""The wire codec over random and degenerate tensors: its bytes, its errors, its counters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raybench.parallel.pipeline.codec import LARGEST, SMALLEST, Codec, finest_grid

TILE = 64
low_bits = st.sampled_from([8, 4, 2])
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
shapes = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
seeds = st.integers(0, 2**31)

DEGENERATE = {
    "zero": torch.zeros(200),
    "constant": torch.full((200,), 0.7),
    "negative constant": torch.full((200,), -123.4),
    "denormals": torch.full((200,), 1e-40) * torch.arange(-100, 100),
    "smallest": torch.tensor([1e-45, -1e-45, 0.0] * 50),
    "huge": torch.tensor([3.4e38, -3.4e38, 1e30, 0.0] * 50),
    "huge constant": torch.full((130,), 3.4e38),
    "outlier": torch.cat([torch.linspace(-1, 1, 199), torch.tensor([1e30])]),
    "tiny outlier": torch.cat([torch.ones(199), torch.tensor([-1e-30])]),
    "Inf": torch.cat([torch.linspace(-1, 1, 199), torch.tensor([math.inf])]),
    "-Inf": torch.cat([torch.linspace(-1, 1, 199), torch.tensor([-math.inf])]),
    "NaN": torch.cat([torch.tensor([math.nan]), torch.linspace(-1, 1, 199)]),
    "all NaN": torch.full((200,), math.nan),
    "both Inf": torch.tensor([math.inf, -math.inf] * 100),
    "one value": torch.tensor([0.3]),
    "empty": torch.zeros(0),
}


def drawn(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def there_and_back(codec: Codec, x: torch.Tensor, **how) -> torch.Tensor:
    message = codec.encode(x, **how)
    assert message.dtype == torch.uint8
    assert message.shape == (codec.message_bytes(x.shape, x.dtype),)
    y = codec.decode(message, x.shape, x.dtype)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    return y


def steps(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Of each value the largest step that its tile's grid may have: range over 2^bits - 2."""
    flat = torch.zeros(-(-x.numel() // TILE) * TILE)
    flat[: x.numel()] = x.float().reshape(-1)
    tiles = flat.view(-1, TILE)
    length = tiles.amax(1).clamp(min=0) - tiles.amin(1).clamp(max=0)
    step = (length / (2**bits - 2) * (1 + 2**-6)).clamp(min=SMALLEST)
    return step.repeat_interleave(TILE)[: x.numel()].view(x.shape)


class TestMessageBytes:
    @pytest.mark.parametrize(
        ("bits", "fewer"), [(32, 1), (16, 2), (8, 256 / 67), (4, 256 / 35), (2, 256 / 19)]
    )
    def test_of_4_mb(self, bits, fewer):
        shape = (16, 128, 16, 32)
        assert 2**22 / Codec(bits).message_bytes(shape, torch.float32) == pytest.approx(fewer)

    def test_four_bits_are_over_six_and_a_half_times_fewer(self):
        assert 2**22 / Codec(4).message_bytes((2**20,), torch.float32) > 7.3

    @given(bits=st.sampled_from([32, 16, 8, 4, 2]), shape=shapes, dtype=dtypes, seed=seeds)
    def test_do_not_depend_on_the_values(self, bits, shape, dtype, seed):
        codec = Codec(bits)
        size = codec.message_bytes(shape, dtype)
        assert len(codec.encode(drawn(shape, seed).to(dtype))) == size
        assert len(codec.encode(torch.zeros(shape, dtype=dtype))) == size

    @given(bits=low_bits, shape=shapes, seed=seeds)
    def test_equal_tensors_are_equal_messages(self, bits, shape, seed):
        """Also in a buffer that was used before: no byte is left as it was."""
        codec, x = Codec(bits), drawn(shape, seed)
        dirty = torch.full((codec.message_bytes(shape, x.dtype),), 255, dtype=torch.uint8)
        message = codec.encode(x, dirty)
        assert message.data_ptr() == dirty.data_ptr()
        assert torch.equal(message, Codec(bits).encode(x))


class TestExact:
    @given(shape=shapes, dtype=dtypes, seed=seeds)
    def test_32_bits_are_the_tensor(self, shape, dtype, seed):
        x = drawn(shape, seed).to(dtype)
        y = there_and_back(Codec(32), x)
        assert torch.equal(y, x)
        y += 1
        assert not torch.equal(y, x)  # memory of its own

    def test_32_bits_pass_on_what_is_not_finite_and_count_it(self):
        codec = Codec(32)
        y = there_and_back(codec, DEGENERATE["Inf"])
        assert torch.equal(y, DEGENERATE["Inf"])
        assert codec.health.nonfinite_tensors == 1

    @given(shape=shapes, dtype=dtypes, seed=seeds)
    def test_16_bits_are_bf16(self, shape, dtype, seed):
        x = drawn(shape, seed).to(dtype)
        assert torch.equal(there_and_back(Codec(16), x), x.bfloat16().to(dtype))

    @pytest.mark.parametrize("bits", [32, 16, 8])
    def test_a_tensor_of_any_memory_format_comes_back_row_by_row(self, bits):
        x = torch.arange(2 * 3 * 4 * 5).float().view(2, 3, 4, 5)
        for there in (x, x.to(memory_format=torch.channels_last), x.flip(1).flip(1)):
            y = there_and_back(Codec(bits), there)
            assert y.is_contiguous()
            assert (y - x).abs().max() <= 0.5

    @given(bits=low_bits, seed=seeds, stochastic=st.booleans())
    def test_zeros_stay_zeros(self, bits, seed, stochastic):
        x = drawn((7, 50), seed).relu_()
        generator = torch.Generator().manual_seed(seed)
        y = there_and_back(Codec(bits), x, stochastic=stochastic, generator=generator)
        assert torch.equal(y[x == 0], x[x == 0])
        assert (y >= 0).all()

    @given(
        bits=low_bits, constant=st.floats(-(2.0**100), 2.0**100, width=32), stochastic=st.booleans()
    )
    def test_a_constant_comes_back_within_its_scales_rounding(self, bits, constant, stochastic):
        x = torch.full((3, TILE), constant)
        y = there_and_back(Codec(bits), x, stochastic=stochastic)
        most = abs(constant) * 2**-7 + SMALLEST
        if stochastic:  # up or down: a step of a constant's grid is the constant over 2^bits - 1
            most += abs(constant) / (2**bits - 1) * (1 + 2**-7)
        assert (y - x).abs().max() <= most

    @given(last=st.sampled_from([255, 15, 3]), signs=st.integers(0, 2), seed=seeds)
    def test_multiples_of_a_scale_come_back_exactly(self, last, signs, seed):
        """A tile whose values lie on a grid with 0 is told without any error."""
        zero = (0, last // 2, last)[signs]
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(0, last + 1, (2, TILE), generator=generator)
        codes[:, :2] = torch.tensor([0, last])
        x = (codes - zero) * 0.375
        assert torch.equal(there_and_back(Codec((last + 1).bit_length() - 1), x), x)


class TestError:
    @given(
        bits=low_bits,
        shape=shapes,
        dtype=dtypes,
        seed=seeds,
        exponent=st.integers(-30, 30),
        shift=st.floats(-3, 3),
    )
    def test_nearest_is_within_half_a_step_of_the_tile(
        self, bits, shape, dtype, seed, exponent, shift
    ):
        scale = 10.0**exponent if dtype != torch.float16 else 1.0
        x = ((drawn(shape, seed) + shift) * scale).to(dtype)
        codec = Codec(bits)
        y, step = there_and_back(codec, x), steps(x, bits)
        rounding = x.float().abs() * torch.finfo(dtype).eps
        assert ((y.float() - x.float()).abs() <= step / 2 + rounding).all()
        assert codec.health.clipped == 0

    @given(bits=low_bits, shape=shapes, seed=seeds)
    def test_stochastic_is_within_a_step_of_the_tile(self, bits, shape, seed):
        x = drawn(shape, seed)
        y = there_and_back(Codec(bits), x, stochastic=True)
        assert ((y - x).abs() <= steps(x, bits)).all()

    @pytest.mark.parametrize("bits", [8, 4, 2])
    def test_stochastic_is_unbiased_and_nearest_is_not(self, bits):
        """Each value's mean over many messages, in units of the mean's own standard error."""
        tensors, generator = 4000, torch.Generator().manual_seed(0)
        x = drawn((TILE,), 1)
        many = x.expand(tensors, TILE).contiguous()
        y = there_and_back(Codec(bits), many, stochastic=True, generator=generator)
        error = (y.mean(0) - x) / (y.std(0) / tensors**0.5).clamp(min=steps(x, bits) / tensors)
        assert error.abs().max() < 5
        assert error.abs().mean() < 1.2  # 0.8 for a normal variable
        nearest = there_and_back(Codec(bits), many)
        assert (nearest.mean(0) - x).abs().max() > 4 * (y.mean(0) - x).abs().max()

    def test_the_generator_decides(self):
        x, codec = drawn((500,), 0), Codec(4)
        first, again, other = (
            codec.encode(x, stochastic=True, generator=torch.Generator().manual_seed(seed))
            for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_noise_of_a_tensors_values_is_independent(self):
        """Every value's noise, and not one noise for four of them."""
        x = torch.full((64, TILE), 0.5)
        x[:, 0] = 15.0  # the step is 1
        y = there_and_back(Codec(4), x, stochastic=True, generator=torch.Generator().manual_seed(0))
        ups = y[:, 4:].reshape(-1, 4) == 1
        assert ups.float().mean() == pytest.approx(0.5, abs=0.05)
        assert len(set(map(tuple, ups.tolist()))) == 16

    @given(last=st.sampled_from([255, 15, 3]), a=st.floats(0, 1e30), b=st.floats(0, 1e30))
    def test_no_grid_with_a_whole_zero_is_finer(self, last, a, b):
        low, high = torch.tensor([[-a]]), torch.tensor([[b]])
        scale, zero = (float(found) for found in finest_grid(low, high, last))
        assert zero == int(zero)
        assert 0 <= zero <= last
        best = min(
            max(a / z if a else 0.0, b / (last - z) if b else 0.0)
            for z in range(last + 1)
            if (z or not a) and (last - z or not b)
        )
        # As fine as the best but for bf16, or finer by leaving out a millionth of a step.
        assert scale <= max(best, SMALLEST) * (1 + 2**-7) + SMALLEST
        if zero and last - zero:
            assert scale * zero >= a * (1 - 1e-6)
            assert scale * (last - zero) >= b * (1 - 1e-6)


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
        assert health.clipped_share == 2 / health.values
        assert Codec(4).health.clipped_share == 0

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
        with pytest.raises(ValueError, match="bits is 3: take 32, 16, 8, 4, 2"):
            Codec(3)

    @pytest.mark.parametrize("tile", [0, 12, -8])
    def test_tile(self, tile):
        with pytest.raises(ValueError, match=f"tile is {tile}: a multiple of 8"):
            Codec(4, tile)

    @given(tile=st.sampled_from([8, 16, 24, 200]), bits=low_bits, shape=shapes, seed=seeds)
    def test_other_tiles_work(self, tile, bits, shape, seed):
        x = drawn(shape, seed)
        y = there_and_back(Codec(bits, tile), x)
        assert (y - x).abs().max() <= (x.max().clamp(min=0) - x.min().clamp(max=0)) / (2**bits - 2)
