"""The wire codec over random and degenerate tensors: its bytes, its errors, its counters."""

from __future__ import annotations

import pytest
import torch
from codec_tensors import (
    DEGENERATE,
    TILE,
    drawn,
    dtypes,
    low_bits,
    seeds,
    shapes,
    steps,
    there_and_back,
)
from hypothesis import given
from hypothesis import strategies as st

from raybench.parallel.pipeline.codec import SMALLEST, Codec, finest_grid


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
