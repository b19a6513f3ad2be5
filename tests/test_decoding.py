"""Decoding into the cache: in order on any number of threads, whole or not at all, and told."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
from image_files import experiment as experiment
from image_files import load as load
from image_files import noise, write_folder
from layouts import both, folders

from raybench import data
from raybench.data import cache, decoding, pixels
from raybench.data.contents import Encoded


def arrays(count: int) -> list[Encoded]:
    return [Encoded(str(i), one) for i, one in enumerate(noise(count))]


class TestBlocks:
    @pytest.mark.parametrize("threads", [1, 2, 5, None])
    def test_are_in_order_on_any_number_of_threads(self, threads, monkeypatch):
        monkeypatch.setattr(decoding, "BLOCK", 3 * 8 * 8 * 7)  # 7 images a block
        blocks = list(decoding.decoded_blocks(iter(arrays(100)), 8, threads=threads))
        assert np.array_equal(np.concatenate([b.images for b in blocks]), noise(100))
        assert [len(b.images) for b in blocks] == [16, *[7] * 12]

    def test_read_no_further_ahead_than_the_threads_need(self, monkeypatch):
        monkeypatch.setattr(decoding, "BLOCK", 3 * 8 * 8)
        asked: list[int] = []

        def counted():
            for number, image in enumerate(arrays(100)):
                asked.append(number)
                yield image

        blocks = decoding.decoded_blocks(counted(), 8, threads=2)
        for number in range(1, 50):
            next(blocks)
            assert len(asked) <= decoding.FIRST + number + 2 * 2

    def test_have_the_sums_of_their_pixels(self):
        (block,) = decoding.decoded_blocks(iter(arrays(10)), 8)
        values = noise(10).astype(int).reshape(10, 64, 3)
        assert np.array_equal(block.sums, values.sum(1))
        assert np.array_equal(block.squares, (values**2).sum(1))


class TestCacheFolder:
    def test_is_whole_or_not_there_when_decoding_is_interrupted(
        self, load, tmp_path, own_cache, monkeypatch
    ):
        folder = write_folder(tmp_path / "x", {"a": 20, "b": 20})
        decode, count = pixels.decoded, iter(range(100))

        def interrupted(image, size):
            if next(count) == 30:
                raise KeyboardInterrupt
            return decode(image, size)

        with monkeypatch.context() as patch:
            patch.setattr(pixels, "decoded", interrupted)
            with pytest.raises(KeyboardInterrupt):
                load(folder)
        assert not [path for path in own_cache.iterdir() if path.is_dir()]
        assert len(load(folder).train) > 20

    def test_of_a_killed_process_is_made_again(self, load, tmp_path, own_cache):
        folder = write_folder(tmp_path / "x", {"a": 8, "b": 8})
        load(folder)
        (whole,) = [path for path in own_cache.iterdir() if path.is_dir()]
        content = (whole / "train.npy").read_bytes()
        half = whole.rename(f"{whole}.partial")
        (half / "train.npy").write_bytes(content[:500])
        cache.decoded.cache_clear()
        load(folder)
        assert [path for path in own_cache.iterdir() if path.is_dir()] == [whole]
        assert (whole / "train.npy").read_bytes() == content

    def test_that_does_not_fit_is_refused_before_decoding(
        self, load, tmp_path, own_cache, monkeypatch
    ):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 70_000_000))
        monkeypatch.setattr(pixels, "decoded", lambda *_: pytest.fail("decoded"))
        folder = write_folder(tmp_path / "x", {"a": 8, "b": 8})
        load_small = {"image_size": 512}
        with pytest.raises(ValueError, match=r"take 0\.0 GB, .* has 0\.1 GB free; set RAYBENCH"):
            load(folder, **load_small)


class TestTelling:
    def test_what_was_understood(self, load, tmp_path, capsys):
        both(folders("train/cat", "train/dog", "test/cat", images=6), folders(".x"))(tmp_path / "x")
        load(tmp_path / "x")
        told = capsys.readouterr().err
        assert "2 classes (cat, dog); 10 train, 2 validation, 6 test images (valid" in told
        assert "decoding 18 images into" in told
        cache.decoded.cache_clear()
        load(tmp_path / "x")
        assert capsys.readouterr().err == ""

    def test_what_was_left_out(self, load, tmp_path, capsys):
        folder = write_folder(tmp_path / "x", {"a": 8, "b": 8})
        (folder / "notes.txt").write_text("?")
        (folder / "a" / "LICENSE").write_text("?")
        load(folder)
        assert "not images are left out: 1 .txt, 1 without an ending" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("size", "side", "advice"),
        [
            (32, 375, 224), (32, 100, 96), (32, 64, 64), (224, 96, 96), (224, 20, 32),
            (32, 48, None), (224, 300, None), (224, 500, None), (32, 8, None), (32, 32, None),
        ],
    )  # fmt: skip
    def test_an_image_size_that_fits(self, size, side, advice):
        text = cache.suggested_size(size, side)
        assert (f"--image-size {advice} suits" in text) if advice else not text

    def test_progress_where_there_is_no_terminal(self, capsys, monkeypatch):
        clock = iter(range(0, 1000, 4))
        monkeypatch.setattr(decoding.time, "monotonic", lambda: next(clock))
        with decoding.progress(600) as advance:
            for _ in range(6):
                advance(100)
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "raybench: decoded 300 of 600 images (25 a second)"
        assert len(lines) == 2


def test_statistics_do_not_depend_on_blocks(load, tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "x", {"a": 30, "b": 30})
    one = load(folder, image_size=16)
    shutil.rmtree(tmp_path / "cache")
    cache.decoded.cache_clear()
    monkeypatch.setattr(decoding, "BLOCK", 1)
    other = load(folder, image_size=16)
    assert (one.mean, one.std, one.sha256) == (other.mean, other.std, other.sha256)


def test_digits_and_cifar10_have_names(experiment, cifar10):
    assert data.load(experiment).class_names == tuple("0123456789")
    images = data.load(replace(experiment, data=cifar10, image_size=32))
    assert images.class_names[:3] == ("airplane", "automobile", "bird")
