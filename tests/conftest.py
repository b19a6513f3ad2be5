"""What all tests share: one thread, fixed examples, and the smallest experiment that trains."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from raybench import data
from raybench.experiment import Experiment
from raybench.training import replicated
from trainers.pruning import base

# What these modules assert is told as fully as a test's own.
pytest.register_assert_rewrite(
    "packed_models", "remote_sweeps", "slow_monarch", "slow_switch", "small_sweep", "table_rows"
)
torch.set_num_threads(1)
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> Experiment:
    """The pruning family on 129 digits of 8x8 pixels: 2 epochs of 4 steps, in fp32."""
    recipe = replace(base.recipe, epochs=2, batch=32, crop=1, precision="fp32")
    return replace(base, image_size=8, subset=0.1, recipe=recipe)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a run asks for its first batch."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it trained")

    monkeypatch.setattr(replicated, "batches", fail)


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A `tmp_path` in memory, where the system has that: for tests of many small files."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of decoded images that is empty, and nobody else's."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("RAYBENCH_CACHE", str(cache))
    data.cache.decoded.cache_clear()
    yield cache
    data.cache.decoded.cache_clear()


@pytest.fixture(scope="session")
def cifar10() -> str:
    """The name of the real data set; skips where `RAYBENCH_DATA` does not lead to it."""
    root = os.environ.get("RAYBENCH_DATA")
    if not root or not (Path(root) / "cifar10").is_dir():
        pytest.skip("RAYBENCH_DATA is not set to a folder with cifar10")
    return "cifar10"
