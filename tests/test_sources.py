"""Where images come from: Parquet files and folders, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import SIDE, encoded, noise, write_folder, write_parquet
from image_files import experiment as experiment
from image_files import load as load
from image_files import photos as photos
from PIL import Image

from raybench import data
from raybench.data import Images, batches


class TestSources:
    def test_parquet_with_img_structs_and_label(self, load, tmp_path):
        write_parquet(tmp_path / "hf/train-00000-of-00002.parquet", [0, 1, 2, 0] * 3)
        write_parquet(tmp_path / "hf/train-00001-of-00002.parquet", [1] * 8)
        write_parquet(tmp_path / "hf/test-00000-of-00001.parquet", [2, 1])
        images = load(tmp_path / "hf")
        assert [len(s) for s in (images.train, images.validation, images.test)] == [17, 3, 2]
        assert images.classes == 3
        assert torch.equal(images.test.labels, torch.tensor([2, 1]))
        inner = images.test.pixels[:, 1:-1, 1:-1].numpy()
        assert np.array_equal(inner, noise(2, seed=2))
        border = images.test.pixels.numpy().copy()
        border[:, 1:-1, 1:-1] = 0
        assert not border.any()

    def test_parquet_with_image_bytes_and_labels(self, load, tmp_path):
        cells = [encoded(pixels) for pixels in noise(10, seed=10)]
        path = tmp_path / "hf/data/train.parquet"
        write_parquet(path, [0, 1] * 5, image="image", label="labels", cells=cells)
        write_parquet(
            tmp_path / "hf/data/validation.parquet", [0, 1], image="image", label="labels"
        )
        images = load(tmp_path / "hf")
        assert [len(s) for s in (images.train, images.validation, images.test)] == [8, 2, 2]
        assert np.array_equal(images.train.pixels[:, 1:-1, 1:-1].numpy(), noise(10, seed=10))

    def test_class_names_of_the_metadata_count(self, load, tmp_path):
        """A class without a training image is still a class."""
        write_parquet(tmp_path / "hf/train.parquet", [0, 1] * 5, names=["a", "b", "c", "d"])
        assert load(tmp_path / "hf").classes == 4

    def test_photographs_are_scaled_and_cut_at_the_centre(self, load, tmp_path):
        folder = write_folder(tmp_path / "wide", {"a": 0, "b": 8}) / "a"
        wide = np.zeros((2 * SIDE, 6 * SIDE, 3), dtype=np.uint8)
        for i in range(8):
            wide[:, 2 * SIDE : 4 * SIDE] = 192 + i  # the middle third
            grey = Image.fromarray(wide).convert("L" if i % 2 else "RGB")
            grey.save(folder / f"{i}.png")
        images = load(tmp_path / "wide")
        inner = images.train.pixels[:, 1:-1, 1:-1]
        assert inner.shape == (16, SIDE, SIDE, 3)
        assert (inner[:8, :, 1:-1] > 190).all()

    def test_a_name_is_looked_for_under_the_root(self, load, tmp_path, monkeypatch):
        write_folder(tmp_path / "root" / "beans", {"healthy": 12, "rust": 8})
        monkeypatch.setenv("RAYBENCH_DATA", str(tmp_path / "root"))
        assert load("beans").classes == 2

    def test_a_dot_is_the_folder_that_one_is_in(self, load, tmp_path, monkeypatch):
        write_folder(tmp_path / "root", {"other": 20, "others": 20})
        write_folder(tmp_path / "here", {"a": 20, "b": 20})
        monkeypatch.setenv("RAYBENCH_DATA", str(tmp_path / "root"))
        monkeypatch.chdir(tmp_path / "here")
        for name in (".", "./", "../here"):
            assert load(name).class_names == ("a", "b")
        with pytest.raises(ValueError, match="--data is empty"):
            load("")

    @pytest.mark.parametrize(
        "names",
        [
            ("Train", "VALID", "Testing"),
            ("training", "dev", "test"),
            ("train", "val", "TEST"),
        ],
    )
    def test_splits_have_their_names_in_many_spellings(self, load, tmp_path, names):
        counts = {f"{name}/{c}": n for name, n in zip(names, (8, 3, 5), strict=True) for c in "ab"}
        images = load(write_folder(tmp_path / "x", counts))
        assert [len(s) for s in (images.train, images.validation, images.test)] == [16, 6, 10]
        assert images.classes == 2

    def test_parquet_splits_are_named_by_file_or_folder(self, load, tmp_path):
        write_parquet(tmp_path / "x/default/train/0000.parquet", [0, 1] * 5)
        write_parquet(tmp_path / "x/default/valid/0000.parquet", [0, 1] * 3)
        write_parquet(tmp_path / "x/cifar_Test.parquet", [0, 1])
        images = load(tmp_path / "x")
        assert [len(s) for s in (images.train, images.validation, images.test)] == [10, 6, 2]

    def test_mean_and_deviation_are_those_of_the_training_images(self, photos):
        pixels = photos.train.pixels[:, 1:-1, 1:-1].numpy().astype(np.float64)
        assert photos.mean == pytest.approx(pixels.mean((0, 1, 2)))
        assert photos.std == pytest.approx(pixels.std((0, 1, 2)))

    def test_cifar10_is_whole(self, experiment, cifar10):
        images = data.load(replace(experiment, data=cifar10, image_size=32))
        splits = (images.train, images.validation, images.test)
        assert [len(split) for split in splits] == [45_000, 5_000, 10_000]
        assert images.classes == 10
        assert images.mirror
        assert images.mean == pytest.approx((125, 123, 114), abs=3)
        assert images.std == pytest.approx((63, 62, 67), abs=4)
        assert images.test.labels.bincount().tolist() == [1000] * 10
        x, _ = next(batches(images, replace(experiment.recipe, batch=500), seed=0, epoch=1))
        assert abs(float(x.mean())) < 0.2
        assert float(x.std()) == pytest.approx(1, abs=0.2)


class TestRefusals:
    def refused(self, load: Callable[..., Images], folder: Path, *words: str, **changes) -> None:
        with pytest.raises(ValueError, match=re.escape(words[0])) as error:
            load(folder, **changes)
        for word in words[1:]:
            assert word in str(error.value), error.value

    def test_unknown_name(self, load):
        self.refused(load, Path("cifr10"), "cifr10", "did you mean 'cifar10'")

    def test_folder_without_images(self, load, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "notes.txt").write_text("no image")
        self.refused(load, tmp_path / "empty", str(tmp_path / "empty"), "no images")

    @pytest.mark.parametrize(
        "counts",
        [
            {"train/a": 4, "holdout/a": 4},
            {"train/a": 4, "a": 4},
        ],
    )
    def test_a_folder_that_is_no_split(self, load, tmp_path, counts):
        folder = write_folder(tmp_path / "x", counts)
        odd = next(name.split("/")[0] for name in counts if not name.startswith("train"))
        self.refused(load, folder, str(folder), odd, "which split", "val")

    def test_a_parquet_file_that_is_no_split(self, load, tmp_path):
        write_parquet(tmp_path / "x/train.parquet", [0, 1] * 5)
        write_parquet(tmp_path / "x/holdout.parquet", [0, 1])
        self.refused(load, tmp_path / "x", "holdout.parquet", "beside train.parquet")

    def test_too_few_images_to_hold_any_out(self, load, tmp_path):
        folder = write_folder(tmp_path / "x", {"a": 2, "b": 2})
        self.refused(load, folder, str(folder), "no class has enough different images", "test")

    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    @pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
    def test_truncated_image_in_a_folder(self, load, tmp_path, kind, share):
        write_folder(tmp_path / "x", {"a": 4, "b": 4})
        content = encoded(noise(1)[0], kind)
        broken = tmp_path / "x" / "b" / f"002.{'png' if kind == 'PNG' else 'jpg'}"
        broken.write_bytes(content[: int(share * len(content))])
        self.refused(load, tmp_path / "x", str(broken), "not a readable image")

    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    def test_truncated_image_in_parquet(self, load, tmp_path, kind):
        cells = [encoded(pixels, kind) for pixels in noise(4)]
        cells[2] = cells[2][: len(cells[2]) // 2]
        path = write_parquet(tmp_path / "x/train.parquet", [0, 1, 0, 1], cells=cells)
        self.refused(load, tmp_path / "x", f"row 2 of {path}", "not a readable image")

    def test_missing_image_in_parquet(self, load, tmp_path):
        cells = [encoded(pixels) for pixels in noise(3)]
        path = write_parquet(tmp_path / "x/train.parquet", [0, 1, 0], cells=[*cells[:2], None])
        self.refused(load, tmp_path / "x", f"row 2 of {path}", "no image bytes")

    def test_label_above_the_named_classes(self, load, tmp_path):
        write_parquet(tmp_path / "x/train.parquet", [0, 1, 2, 1], names=["cat", "dog"])
        self.refused(load, tmp_path / "x", str(tmp_path / "x"), "label 2", "image 2", "2 classes")

    @pytest.mark.parametrize("label", [-1, None])
    def test_label_that_is_none_of_the_classes(self, load, tmp_path, label):
        write_parquet(tmp_path / "x/train.parquet", [0, 1, label, 1])
        self.refused(load, tmp_path / "x", str(tmp_path / "x"), f"label {label}", "image 2")

    def test_label_that_only_the_test_split_has(self, load, tmp_path):
        write_parquet(tmp_path / "x/train.parquet", [0, 1, 0, 1])
        write_parquet(tmp_path / "x/test.parquet", [0, 7])
        self.refused(load, tmp_path / "x", "label 7 of test", "2 classes")

    @pytest.mark.parametrize(("image", "label"), [("picture", "label"), ("img", "kind")])
    def test_missing_columns(self, load, tmp_path, image, label):
        path = write_parquet(tmp_path / "x/train.parquet", [0, 1], image=image, label=label)
        self.refused(load, tmp_path / "x", str(path), f"'{image}', '{label}'")

    def test_broken_parquet(self, load, tmp_path):
        path = write_parquet(tmp_path / "x/train.parquet", [0, 1])
        path.write_bytes(path.read_bytes()[:-20])
        self.refused(load, tmp_path / "x", str(path))

    def test_no_training_images(self, load, tmp_path):
        write_folder(tmp_path / "x", {"test/a": 3})
        self.refused(load, tmp_path / "x", str(tmp_path / "x"), "none to train on")

    def test_crop_wider_than_the_padding(self, experiment):
        wide = replace(experiment.recipe, crop=2)
        with pytest.raises(ValueError, match=r"recipe\.crop is 2; .* padded by 1"):
            data.load(replace(experiment, recipe=wide))

    def test_batch_larger_than_the_data(self, experiment):
        large = replace(experiment.recipe, batch=2000)
        with pytest.raises(ValueError, match=r"recipe\.batch is 2000, but digits has only 1294"):
            data.load(replace(experiment, recipe=large))

    def test_a_refused_source_leaves_no_half_cache(self, load, tmp_path, own_cache):
        write_folder(tmp_path / "x", {"a": 8, "b": 8})
        broken = tmp_path / "x" / "b" / "002.png"
        whole = broken.read_bytes()
        broken.write_bytes(whole[:20])
        self.refused(load, tmp_path / "x", str(broken))
        assert not [path for path in own_cache.iterdir() if path.is_dir()]
        broken.write_bytes(whole)
        assert len(load(tmp_path / "x").train) > 8
