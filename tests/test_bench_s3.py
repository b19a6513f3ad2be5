"""The bench s3_lost, with two kills."""

from __future__ import annotations

import pytest

from raybench.bench.cluster_parts import s3_lost


@pytest.mark.workers
@pytest.mark.nightly
def test_nothing_is_lost():
    figures = s3_lost.measure(kills=2)
    assert figures["s3_kills"] == 2
    assert figures["s3_reads"] > 0
    assert figures["s3_trials"] > 0
    assert (figures["s3_lost"], figures["s3_duplicates"], figures["s3_unreadable"]) == (0, 0, 0)
