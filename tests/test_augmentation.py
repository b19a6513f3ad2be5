"""Cutout and mixup against slow references, alone and together."""

from __future__ import annotations

import math
import re
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
from raybench.data import augment
from raybench.experiment import Pipeline
from raybench.training import loop
from raybench.training.staged import StageRun


def blanked(one: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    """The square set to zero, pixel by pixel, as in the paper's code."""
    cut = one.copy()
    for y in range(row - side // 2, row - side // 2 + side):
        for x in range(column - side // 2, column - side // 2 + side):
            if 0 <= y < SIDE and 0 <= x < SIDE:
                cut[:, y, x] = 0.0
    return cut


class TestCutout:
    @pytest.mark.parametrize("side", [1, 2, 3, 5, 7])
    def test_covers_exactly_the_squares(self, side):
        """With every middle that there is, edges and corners among them."""
        x = torch.randn(SIDE * SIDE, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
        before = x.numpy().copy()
        row, column = (
            t.flatten() for t in torch.meshgrid(*[torch.arange(SIDE)] * 2, indexing="ij")
        )
        augment.cutout(x, row, column, side)
        wanted = [
            blanked(one, int(r), int(c), side)
            for one, r, c in zip(before, row, column, strict=True)
        ]
        assert np.array_equal(x.numpy(), np.stack(wanted))
        # Of a square in a corner, a quarter is inside at the least.
        assert (x[:, 0] == 0).sum((1, 2)).min() >= side**2 / 4

    def test_blanks_each_image_at_a_place_of_its_own(self, photos, experiment):
        recipe = replace(experiment.recipe, cutout=3, crop=0, flip=False)
        seen = set()
        for x, y in epoch_of(photos, recipe, 1):
            assert y.shape == (4,)
            for one in x:
                places = (one == 0).all(0).nonzero()
                assert 0 < len(places) <= 9
                seen.add((*places.min(0).values.tolist(), *places.max(0).values.tolist()))
        assert len(seen) > 24  # of 48 images and 64 places


class TestMixup:
    def test_equals_a_slow_reference(self, photos, experiment):
        """Image by image, from the plain batches and the shares that were drawn."""
        recipe = replace(experiment.recipe, crop=0, flip=False, mixup=0.7)
        plain = epoch_of(photos, replace(recipe, mixup=0.0), 1)
        mixed = epoch_of(photos, recipe, 1)
        shares = []
        for (x, y), (mixed_x, mixed_y) in zip(plain, mixed, strict=True):
            assert mixed_x.is_contiguous(memory_format=torch.channels_last)
            assert mixed_y.shape == (len(y), photos.classes)
            # The share is what takes the first image to its mixture with the last.
            difference = (x[0] - x[-1]).flatten()
            share = float((mixed_x[0] - x[-1]).flatten() @ difference / difference.square().sum())
            shares.append(share)
            for i in range(len(y)):
                other = len(y) - 1 - i
                wanted = share * x[i] + (1 - share) * x[other]
                assert torch.allclose(mixed_x[i], wanted, atol=1e-5)
                label = torch.zeros(photos.classes)
                label[y[i]] += share
                label[y[other]] += 1 - share
                assert torch.allclose(mixed_y[i], label, atol=1e-5)
        assert len({round(share, 4) for share in shares}) == len(shares) == 12
        assert all(0 <= share <= 1 for share in shares)

    def test_labels_have_a_mass_of_one(self, photos, experiment):
        for alpha in (0.1, 1.0, 8.0):
            recipe = replace(experiment.recipe, mixup=alpha, cutout=4)
            for _, y in epoch_of(photos, recipe, 1):
                assert (y >= 0).all()
                assert torch.allclose(y.sum(1), torch.ones(len(y)), atol=1e-6)

    @pytest.mark.parametrize(("alpha", "deviation"), [(0.2, 0.423), (1.0, 0.289), (8.0, 0.121)])
    def test_shares_are_drawn_from_the_beta_distribution(self, alpha, deviation):
        """Of Beta(a, a) the mean is 1/2 and the variance 1 / (4 (2 a + 1))."""
        generator = torch.Generator().manual_seed(0)
        drawn = np.array([augment.mixing_share(alpha, generator) for _ in range(2000)])
        assert drawn.mean() == pytest.approx(0.5, abs=3 * deviation / 2000**0.5)
        assert drawn.std() == pytest.approx(deviation, rel=0.05)

    def test_hard_labels_and_their_one_hot_vectors_give_one_loss(self):
        logits, y = torch.randn(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
        for smoothing in (0.0, 0.1):
            soft, hard = (
                torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing)
                for target in (torch.nn.functional.one_hot(y, 5).float(), y)
            )
            assert float(soft) == pytest.approx(float(hard), rel=1e-6)


class TestAugmented:
    """What holds for both, and for both together."""

    WAYS = ({"cutout": 3}, {"mixup": 0.5}, {"cutout": 3, "mixup": 0.5})

    @pytest.mark.parametrize("way", WAYS, ids=str)
    @pytest.mark.parametrize("workers", [2, 4])
    def test_workers_together_see_the_batches_of_one(self, photos, experiment, way, workers):
        recipe = replace(experiment.recipe, **way)
        alone = epoch_of(photos, recipe, 2)
        parts = [epoch_of(photos, recipe, 2, rank=r, workers=workers) for r in range(workers)]
        for (x, y), *found in zip(alone, *parts, strict=True):
            assert torch.equal(torch.cat([x for x, _ in found]), x)
            assert torch.equal(torch.cat([y for _, y in found]), y)

    @pytest.mark.parametrize("way", WAYS, ids=str)
    def test_a_resumed_run_draws_the_same(self, photos, experiment, way):
        recipe = replace(experiment.recipe, **way)
        torch.manual_seed(1)
        whole = [epoch_of(photos, recipe, epoch) for epoch in (1, 2)][1]
        torch.manual_seed(2)
        for (x, y), (again, labels) in zip(whole, epoch_of(photos, recipe, 2), strict=True):
            assert torch.equal(x, again)
            assert torch.equal(y, labels)
        assert not torch.equal(whole[0][0], epoch_of(photos, recipe, 1)[0][0])

    def test_off_draws_nothing(self, photos, experiment):
        """Order, and a shift for each image: the generator's numbers, with none between them."""
        recipe = experiment.recipe
        generator = torch.Generator().manual_seed(data.images._mixed(0, 1))
        order = photos.train.rows[torch.randperm(48, generator=generator)].split(4)
        decode = Decoder(photos, recipe.crop)
        for (x, _), rows in zip(epoch_of(photos, recipe, 1), order, strict=True):
            shifts = torch.randint(2 * recipe.crop + 1, (2, 4), generator=generator)
            wanted = zip(rows.tolist(), *shifts.tolist(), strict=True)
            assert [decode(one)[:3] for one in x] == list(wanted)

    def test_train_to_finite_losses(self, tiny):
        recipe = replace(tiny.recipe, epochs=1, mixup=0.4, cutout=4, label_smoothing=0.1)
        (epoch,) = loop.fit(replace(tiny, recipe=recipe), data.load(tiny))
        assert math.isfinite(epoch.metrics["loss"])
        assert 0 <= epoch.metrics["accuracy"] <= 1

    def test_reach_the_stages_of_a_pipeline(self, tiny):
        """Soft labels are cut into chunks as hard ones are."""
        recipe = replace(tiny.recipe, mixup=0.4, cutout=4)
        experiment = replace(tiny, family="pipeline", recipe=recipe)
        losses = []
        for chunks in (1, 4):
            staged = replace(experiment, model="vit32x2", pipeline=Pipeline(chunks=chunks))
            run = StageRun(staged, data.load(staged), 0, [])
            losses.append(run.epoch(1).loss)
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"mixup": -0.1}, "mixup is -0.1: it must not be negative"),
            ({"mixup": math.nan}, "mixup is nan"),
            ({"mixup": math.inf}, "the alpha of a Beta distribution is finite"),
            ({"cutout": -1}, "cutout is -1: it must not be negative"),
            ({"cutout": 8}, "recipe.cutout is 8, but images have only 8 pixels a side"),
        ],
    )
    def test_wrong_values_are_refused(self, tiny, values, said):
        with pytest.raises(ValueError, match=re.escape(said)):
            replace(tiny, recipe=replace(tiny.recipe, **values))
