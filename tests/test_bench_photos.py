"""`bench input`: the memory that decoding needs is that of its own process."""

from __future__ import annotations

import numpy as np
import pytest

from raybench.bench import photos


@pytest.mark.workers
def test_the_peak_does_not_depend_on_the_process_that_measures(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    photos.write(folder, 40)
    ballast = np.ones(1 << 27)  # 1 GiB, more than the other process has
    peak = photos.peak_bytes(folder, tmp_path / "cache")
    assert ballast.all()
    assert 1 << 20 < peak < 1 << 28
