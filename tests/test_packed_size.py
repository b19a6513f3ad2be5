"""The packed file is small: each tensor's smallest codec, and codes near their entropy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packed_models import NAME, chosen, quantized

from raybench import artefact
from raybench.artefact import codecs
from raybench.artefact.breakdown import REST, breakdown, totals
from raybench.models import build


class TestCodec:
    def test_is_the_smallest(self):
        torch.manual_seed(0)
        dense = torch.randn(4000)
        tensors = {
            "constant": torch.zeros(4000),
            "half": dense.half().float(),
            "sparse": torch.where(torch.rand(4000) < 0.7, 0.0, dense),
            "planes": dense,
        }
        assert chosen(tensors) == {name: name for name in tensors}

    @pytest.mark.parametrize(
        ("weight", "step", "bits"),
        [
            ([1.0, 2.0, 8.0], 1.0, 4),  # a code too large
            ([1.0, 2.0, 2.5], 1.0, 4),  # between two codes
            ([1.0, torch.nan, 2.0], 1.0, 4),
            ([1.0, 2.0, 3.0], 0.0, 4),
            ([1.0, 2.0, 3.0], torch.nan, 4),
            ([1.0, 2.0, 3.0], 1.0, 0),  # not quantized yet
        ],
    )
    def test_is_never_a_grid_that_loses_a_bit(self, weight, step, bits):
        tensors = {
            "x.weight": torch.tensor([weight]),
            "x.weight_step": torch.tensor([step]),
            "x.weight_bits": torch.tensor(bits),
        }
        assert codecs.choose("x.weight", tensors)[0] != "grid"

    def test_bits_that_no_grid_has_are_refused(self):
        tensors = {"x.weight": torch.ones(2, 2), "x.weight_bits": torch.tensor(9)}
        with pytest.raises(ValueError, match=r"x\.weight has 9 bits: 2 to 8, or 0 for none"):
            codecs.grid.bits("x.weight", tensors)


class TestSize:
    """Of ResNet-20, against 1,120,279 bytes that torch.save takes for it in fp32."""

    @pytest.mark.parametrize(
        ("sparsity", "bits", "reached"), [(0.6, 8, 8.0), (0.8, 4, 22.0), (0.9, 4, 36.0)]
    )
    def test_reaches_what_it_is_to_reach(self, tmp_path, sparsity, bits, reached):
        model, experiment = quantized(sparsity, bits)
        path = tmp_path / "m"
        artefact.save(model, experiment, 10, path)
        assert 1_120_279 / path.stat().st_size >= reached
        table = breakdown(path)
        assert table["bytes"].sum() == path.stat().st_size
        on_grid = table[table["codec"] == "grid"]
        assert len(on_grid) == 20
        assert set(on_grid["bits"]) == {8, bits}
        # Models of the range coder included, the codes take hardly more than their entropy.
        assert on_grid["bytes"].sum() < 1.02 * on_grid["entropy_bytes"].sum()
        counted = on_grid["shape"].str.split("x").map(lambda s: np.prod([int(n) for n in s]))
        assert np.average(on_grid["sparsity"], weights=counted) == pytest.approx(sparsity, abs=0.04)
        # What is left is header and index: the 217 tensors of the network are well under 700 bytes.
        assert table["parameter"].iloc[-1] == REST
        assert 200 < table["bytes"].iloc[-1] < 700
        assert table[table["codec"] == "constant"]["bytes"].sum() == 0

    def test_rivals_are_what_they_are_called(self, tmp_path):
        model, experiment = quantized(0.6, 8, size=8)
        artefact.save(model, experiment, 10, tmp_path / "m")
        sums = totals(tmp_path / "m")
        torch.save(dict(build(NAME, classes=10, image_size=32).state_dict()), tmp_path / "dense")
        assert sums["fp32_bytes"] == pytest.approx((tmp_path / "dense").stat().st_size, rel=0.01)
        assert sums["file_bytes"] == (tmp_path / "m").stat().st_size
        assert sums["file_bytes"] < sums["fp32_zstd_bytes"] < sums["fp32_bytes"]
        assert sums["ratio_fp32"] == sums["fp32_bytes"] / sums["file_bytes"]
        assert 1 < sums["ratio_entropy"] < 1.03
