"""Training, validation and test images: disjoint, whole, and the same for every seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from image_files import SIDE, encoded, write_folder
from image_files import experiment as experiment
from image_files import load as load
from image_files import photos as photos

from raybench import data
from raybench.data import Images
from raybench.data.hold_out import split_rows


def rows(images: Images) -> list[set[int]]:
    return [set(s.rows.tolist()) for s in (images.train, images.validation, images.test)]


class TestSplits:
    def test_of_a_single_source_are_disjoint_and_whole(self, experiment):
        images = data.load(experiment)
        train, validation, test = rows(images)
        assert (len(train), len(validation), len(test)) == (1294, 144, 359)
        assert train | validation | test == set(range(1797))
        assert train.isdisjoint(validation)
        assert test.isdisjoint(train | validation)
        assert images.classes == 10

    @pytest.mark.parametrize("counts", [None, {"a": 30, "b": 20}, {"a": 180, "b": 3}])
    def test_no_test_image_of_a_seed_is_in_training_of_another(
        self, experiment, load, tmp_path, counts
    ):
        name = write_folder(tmp_path / "x", counts) if counts else "digits"
        runs = [load(name, seed=seed, subset=share) for seed in range(3) for share in (0.5, 1.0)]
        trained = set().union(*(rows(images)[0] for images in runs))
        for images in runs:
            assert rows(images)[1:] == rows(runs[0])[1:]
            assert trained.isdisjoint(rows(images)[1] | rows(images)[2])
        assert not torch.equal(runs[1].train.rows, runs[3].train.rows)  # their order is the seed's
        assert rows(runs[0])[0] != rows(runs[2])[0]  # and so is the subset
        assert torch.equal(runs[1].train.rows, load(name).train.rows)

    def test_are_the_same_at_every_image_size(self, load):
        small, large = load("digits"), load("digits", image_size=16)
        assert rows(small) == rows(large)

    def test_have_every_class_of_three_images(self, load, tmp_path):
        images = load(write_folder(tmp_path / "x", {"a": 180, "b": 3, "c": 60}))
        splits = (images.train, images.validation, images.test)
        assert [s.labels[s.rows].bincount().tolist() for s in splits] == [
            [130, 1, 44],
            [14, 1, 4],
            [36, 1, 12],
        ]

    def test_hold_equal_images_out_together(self):
        """Whatever their labels are."""
        generator = np.random.default_rng(0)
        digests = generator.integers(0, 60, 400).astype(np.uint64)
        labels = generator.integers(0, 3, 400)
        actual = split_rows({"train"}, digests, labels)
        assert sorted(np.concatenate(list(actual.values()))) == list(range(400))
        kinds = [set(digests[actual[name]]) for name in ("train", "validation", "test")]
        assert sum(map(len, kinds)) == len(set(digests)) == len(set().union(*kinds))

    def test_a_subset_has_the_classes_in_their_shares(self, load, tmp_path):
        folder = write_folder(tmp_path / "x", {"a": 180, "b": 3, "c": 60})
        part = load(folder, subset=0.1).train
        assert part.labels[part.rows].bincount().tolist() == [12, 1, 5]

    @pytest.mark.parametrize("held_out", ["validation", "test"])
    def test_statistics_are_of_the_training_images_alone(self, load, tmp_path, held_out):
        """White images in place of those that are held out move nothing."""
        folder = write_folder(tmp_path / "x", {"a": 60, "b": 3})
        images, white = load(folder), np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
        split = getattr(images, held_out)
        train = images.train.pixels[images.train.rows, 1:-1, 1:-1].double()
        assert images.mean == pytest.approx(train.mean((0, 1, 2)).tolist())
        assert images.std == pytest.approx(train.std((0, 1, 2), correction=0).tolist())
        for name in ("train", "validation", "test"):  # the same splits, by name
            for row in getattr(images, name).rows.tolist():
                place = f"a/{row:03d}.png" if row < 60 else f"b/{row - 60:03d}.png"
                target = tmp_path / "y" / name / place
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((folder / place).read_bytes())
                if name == held_out:
                    target.write_bytes(encoded(white))
        changed = load(tmp_path / "y")
        assert len(getattr(changed, held_out)) == len(split)
        assert (changed.mean, changed.std) == (images.mean, images.std)
        assert load(folder, subset=0.5, seed=3).mean == images.mean

    def test_subset_takes_from_training_alone(self, experiment):
        whole, part = data.load(experiment), data.load(replace(experiment, subset=0.25))
        assert rows(part)[1:] == rows(whole)[1:]
        assert rows(part)[0] < rows(whole)[0]
        assert len(part.train) == round(0.25 * 1294)

    def test_of_the_source_are_kept(self, photos):
        assert [len(s) for s in (photos.train, photos.validation, photos.test)] == [48, 7, 7]
        assert photos.train.pixels.data_ptr() != photos.test.pixels.data_ptr()

    def test_validation_is_held_out_where_only_test_is_given(self, load, tmp_path):
        folder = write_folder(tmp_path / "x", {"train/a": 30, "train/b": 10, "test/b": 5})
        images = load(folder)
        assert [len(s) for s in (images.train, images.validation, images.test)] == [36, 4, 5]
        train, validation, _ = rows(images)
        assert train.isdisjoint(validation)
        assert set(images.test.labels.tolist()) == {1}

    def test_both_are_held_out_where_none_is_given(self, load, tmp_path):
        images = load(write_folder(tmp_path / "x", {"cat": 30, "dog": 20}))
        assert [len(s) for s in (images.train, images.validation, images.test)] == [36, 4, 10]
        assert set().union(*rows(images)) == set(range(50))
        assert images.classes == 2
        assert images.train.labels.bincount().tolist() == [30, 20]
        assert images.test.labels[images.test.rows].bincount().tolist() == [6, 4]
