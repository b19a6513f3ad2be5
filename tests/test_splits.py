"""Training, validation and test images: disjoint, whole, and decided by the seed."""

from __future__ import annotations

from dataclasses import replace

import torch
from image_files import experiment as experiment
from image_files import load as load
from image_files import photos as photos
from image_files import write_folder

from raybench import data
from raybench.data import Images


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

    def test_are_decided_by_the_seed(self, experiment):
        one, again = data.load(experiment), data.load(experiment)
        other = data.load(replace(experiment, seed=1))
        assert torch.equal(one.train.rows, again.train.rows)
        assert rows(one) != rows(other)
        assert one.sha256 == other.sha256

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
