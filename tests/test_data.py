"""Batches of images, for training and evaluation, against a slow reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from image_crops import Decoder, epoch_of
from image_files import SIDE
from image_files import experiment as experiment
from image_files import load as load
from image_files import photos as photos

from raybench import data
from raybench.data import batches, evaluation_batches


class TestBatches:
    @pytest.mark.parametrize("flip", [True, False])
    def test_equal_a_slow_reference(self, photos, experiment, flip):
        """Crop, mirror and normalise, image by image in numpy."""
        recipe = replace(experiment.recipe, flip=flip)
        decode, seen = Decoder(photos, recipe.crop), []
        mean, std = (np.array(v, dtype=np.float32) for v in (photos.mean, photos.std))
        for x, y in epoch_of(photos, recipe, 1):
            assert x.shape == (4, 3, SIDE, SIDE)
            assert x.dtype == torch.float32
            assert x.is_contiguous(memory_format=torch.channels_last)
            for one, label in zip(x, y, strict=True):
                i, top, left, mirrored = decode(one)
                window = photos.train.pixels[i].numpy()[top : top + SIDE, left : left + SIDE]
                window = window[:, ::-1] if mirrored else window
                wanted = ((window.astype(np.float32) - mean) / std).transpose(2, 0, 1)
                assert np.allclose(one.numpy(), wanted, atol=1e-5)
                assert label == photos.train.labels[i]
                seen.append((i, top, left, mirrored))
        assert sorted(i for i, *_ in seen) == photos.train.rows.sort().values.tolist()
        assert {top for _, top, _, _ in seen} == {left for _, _, left, _ in seen} == {0, 1, 2}
        assert {mirrored for *_, mirrored in seen} == ({True, False} if flip else {False})

    def test_show_each_image_once_each_way_in_two_epochs(self, photos, experiment):
        decode = Decoder(photos, experiment.recipe.crop)
        ways = {}
        for epoch in (3, 4):
            for x, _ in epoch_of(photos, experiment.recipe, epoch):
                for i, _, _, mirrored in map(decode, x):
                    ways.setdefault(i, []).append(mirrored)
        assert len(ways) == 48
        assert all(sorted(way) == [False, True] for way in ways.values())

    def test_never_mirror_digits(self, experiment):
        images = data.load(experiment)
        assert experiment.recipe.flip
        assert not images.mirror
        crop = replace(experiment.recipe, crop=0, batch=1000)
        for epoch in (1, 2):
            ((x, _),) = epoch_of(images, crop, epoch)
            upright = {
                row.tobytes() for row in images.train.pixels[:, 1:-1, 1:-1].contiguous().numpy()
            }
            std, mean = (torch.tensor(v).view(3, 1, 1) for v in (images.std, images.mean))
            raw = (x * std + mean).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            assert all(row.tobytes() in upright for row in raw.numpy())

    def test_without_a_crop_are_centred(self, photos, experiment):
        recipe = replace(experiment.recipe, crop=0)
        decode = Decoder(photos, 1)
        for x, _ in epoch_of(photos, recipe, 1):
            assert all(decode(one)[1:3] == (1, 1) for one in x)

    def test_of_two_workers_together_are_those_of_one(self, photos, experiment):
        recipe = experiment.recipe
        alone = epoch_of(photos, recipe, 2)
        parts = [epoch_of(photos, recipe, 2, rank=rank, workers=2) for rank in (0, 1)]
        assert len(alone) == 12
        for (x, y), (x0, y0), (x1, y1) in zip(alone, *parts, strict=True):
            assert len(x0) == len(x1) == 2
            assert torch.equal(torch.cat([x0, x1]), x)
            assert torch.equal(torch.cat([y0, y1]), y)

    def test_of_an_epoch_depend_on_nothing_before_it(self, photos, experiment):
        torch.manual_seed(1)
        whole = [epoch_of(photos, experiment.recipe, epoch) for epoch in (1, 2, 3)][2]
        torch.manual_seed(2)
        resumed = epoch_of(photos, experiment.recipe, 3)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(whole, resumed, strict=True))

    def test_differ_from_epoch_to_epoch_and_from_seed_to_seed(self, photos, experiment):
        first = next(iter(epoch_of(photos, experiment.recipe, 1)))[0]
        assert not torch.equal(first, epoch_of(photos, experiment.recipe, 2)[0][0])
        other = next(batches(photos, experiment.recipe, seed=1, epoch=1))[0]
        assert not torch.equal(first, other)

    def test_all_have_the_same_shape(self, photos, experiment):
        """48 images in batches of 10: the last 8 of an epoch are left out."""
        shapes = [x.shape[0] for x, _ in epoch_of(photos, replace(experiment.recipe, batch=10), 1)]
        assert shapes == [10] * 4


class TestEvaluation:
    @pytest.mark.parametrize("workers", [1, 2, 3])
    def test_covers_each_image_once_as_it_is(self, photos, workers):
        found = []
        for rank in range(workers):
            for x, y in evaluation_batches(
                photos, photos.validation, batch=3, rank=rank, workers=workers
            ):
                assert len(x) <= 3
                found += [
                    (one.numpy().tobytes(), int(label)) for one, label in zip(x, y, strict=True)
                ]
        mean, std = (np.array(v, dtype=np.float32) for v in (photos.mean, photos.std))
        wanted = []
        for pixels, label in zip(photos.validation.pixels, photos.validation.labels, strict=True):
            wanted.append((pixels[1:-1, 1:-1].numpy(), int(label)))
        assert len(found) == len(set(found)) == len(wanted) == 7
        for pixels, label in wanted:
            x = ((pixels.astype(np.float32) - mean) / std).transpose(2, 0, 1)
            assert any(
                label == y
                and np.allclose(np.frombuffer(b, np.float32).reshape(x.shape), x, atol=1e-5)
                for b, y in found
            )
