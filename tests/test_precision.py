"""`recipe.precision auto`: bf16 only where the processor is faster in it."""

from __future__ import annotations

import pytest
import torch

from raybench.training.measure import cpu_dtype

AVX512, AMX = {"avx512f", "avx512_bf16"}, {"amx_tile", "amx_bf16"}


@pytest.mark.parametrize(
    ("features", "vendor", "dtype"),
    [
        ({"avx512f"}, "AuthenticAMD", torch.float32),
        (AVX512, "AuthenticAMD", torch.bfloat16),
        (AVX512, "GenuineIntel", torch.float32),  # one unit for bf16, two for fp32
        (AVX512 | AMX, "GenuineIntel", torch.bfloat16),
        (set(), "", torch.float32),
    ],
)
def test_the_dtype_of_a_processor(features, vendor, dtype):
    assert cpu_dtype(frozenset(features), vendor)[0] == dtype
