"""The range coder: its models, and symbols that come back at the estimated cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybench.artefact import entropy


class TestEntropy:
    def test_buckets_hold_all_magnitudes_in_order(self):
        for bits in range(2, 9):
            largest = 2 ** (bits - 1) - 1
            buckets = entropy.buckets(largest)
            assert len(buckets) == 2 * largest + 1
            assert (buckets == buckets[::-1]).all()
            upward = np.diff(buckets[largest:])
            assert set(upward) <= {0, 1}
            assert (upward[: min(largest, 8)] == 1).all()
        assert buckets.max() == 23

    def test_eighths_are_powers_of_two(self):
        np.testing.assert_allclose(entropy.EIGHTHS, 2.0 ** (-np.arange(8) / 8), rtol=1e-15)

    @settings(max_examples=30)
    @given(
        bits=st.integers(2, 8),
        spread=st.floats(0.01, 60),
        count=st.integers(1, 3000),
        seed=st.integers(0, 1000),
    )
    def test_symbols_come_back_at_the_cost_that_was_estimated(self, bits, spread, count, seed):
        largest = 2 ** (bits - 1) - 1
        normal = np.random.default_rng(seed).normal(scale=spread, size=count)
        symbols = np.clip(np.rint(normal), -largest, largest).astype(np.intp) + largest
        buckets = entropy.buckets(largest)
        model, coder = entropy.model(symbols, buckets), entropy.RangeEncoder()
        entropy.append(coder, symbols, model, buckets)
        words = coder.get_compressed()
        back = entropy.take(entropy.RangeDecoder(words), count, model, buckets)
        assert (back == symbols).all()
        estimated = entropy.estimated_bytes(symbols, buckets) - len(model)
        assert estimated - 1 <= words.nbytes <= estimated * 1.001 + 8

    def test_of_a_histogram_is_what_the_formula_says(self):
        assert entropy.entropy_bytes(np.repeat([0, 1, 2, 3], 100)) == pytest.approx(400 * 2 / 8)
        assert entropy.entropy_bytes(np.zeros(7, np.intp)) == 0
        assert entropy.entropy_bytes(np.zeros(0, np.intp)) == 0
