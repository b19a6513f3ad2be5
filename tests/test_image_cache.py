"""The cache of decoded images: used a second time, and never for other images."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from image_files import encoded, noise, write_folder
from image_files import experiment as experiment
from image_files import load as load

from raybench import data
from raybench.data import pixels


class TestCache:
    @pytest.fixture
    def decoded(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Every image that is decoded from here on."""
        found: list[str] = []
        decode = pixels.decoded

        def count(image, size):
            found.append(image.where)
            return decode(image, size)

        monkeypatch.setattr(pixels, "decoded", count)
        return found

    def test_is_used_the_second_time(self, load, tmp_path, decoded):
        folder = write_folder(tmp_path / "x", {"a": 8, "b": 8})
        before = load(folder)
        assert len(decoded) == 16
        data.cache.decoded.cache_clear()  # as in a new process
        after = load(folder)
        assert len(decoded) == 16
        assert torch.equal(before.train.pixels, after.train.pixels)
        assert before.train.pixels.data_ptr() != after.train.pixels.data_ptr()
        assert replace(before, train=0, validation=0, test=0) == replace(
            after, train=0, validation=0, test=0
        )

    def test_notices_a_changed_file(self, load, tmp_path, decoded):
        folder = write_folder(tmp_path / "x", {"a": 8, "b": 8})
        before = load(folder)
        changed = folder / "a" / "003.png"
        changed.write_bytes(encoded(noise(1, seed=99)[0]))
        os.utime(changed, ns=(1, 1))
        data.cache.decoded.cache_clear()
        after = load(folder)
        assert len(decoded) == 32
        assert before.sha256 != after.sha256

    def test_of_another_size_is_another(self, load, tmp_path, decoded):
        folder = write_folder(tmp_path / "x", {"a": 8, "b": 8})
        assert load(folder).train.size == 8
        assert load(folder, image_size=16).train.size == 16
        assert len(decoded) == 32

    def test_is_shared_between_experiments_of_any_seed(self, load, tmp_path, decoded):
        folder = write_folder(tmp_path / "x", {"a": 8, "b": 8})
        one, other = load(folder), load(folder, seed=1)
        assert len(decoded) == 16
        assert one.train.pixels.data_ptr() == other.train.pixels.data_ptr()
