"""Images: the batches against a slow reference, the splits, the sources and what they refuse."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raybench import augment, data, loop, sources
from raybench.data import Images, batches, evaluation_batches
from raybench.experiment import Experiment, Pipeline
from raybench.stage_loop import StageRun

SIDE = 8


def noise(count: int, seed: int = 0) -> np.ndarray:
    """Images of which no crop, mirrored or not, equals another."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_folder(folder: Path, counts: dict[str, int]) -> Path:
    """`class` or `split/class` -> number of images."""
    for seed, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i, pixels in enumerate(noise(count, seed)):
            (folder / name / f"{i:03d}.png").write_bytes(encoded(pixels))
    return folder


def write_parquet(
    path: Path,
    labels: list[object],
    *,
    image: str = "img",
    label: str = "label",
    names: list[str] | None = None,
    cells: list[object] | None = None,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = [encoded(pixels) for pixels in noise(len(labels), seed=len(labels))]
    cells = cells or [{"bytes": content, "path": None} for content in plain]
    table = pa.table({image: cells, label: labels})
    if names is not None:
        features = {label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    pq.write_table(table, path)
    return path


@pytest.fixture
def experiment(tiny: Experiment) -> Experiment:
    """`tiny` on all images, a few to a batch."""
    return replace(tiny, subset=1.0, recipe=replace(tiny.recipe, batch=4))


@pytest.fixture
def load(experiment: Experiment, own_cache: Path) -> Callable[..., Images]:
    """Loads a folder."""
    return lambda folder, **changes: data.load(replace(experiment, data=str(folder), **changes))


@pytest.fixture
def photos(load: Callable[..., Images], tmp_path: Path) -> Images:
    """48 training images of noise that may be mirrored."""
    folder = write_folder(
        tmp_path / "photos",
        {"train/a": 24, "train/b": 24, "validation/a": 7, "test/a": 3, "test/b": 4},
    )
    return load(folder)


# --- Batches ------------------------------------------------------------------------------------


class Decoder:
    """Finds out, for a normalised crop, which image it is, how it was shifted, and whether it was
    mirrored: by comparing it with every crop of every image, one after another."""

    def __init__(self, images: Images, crop: int) -> None:
        self.images, self.known = images, {}
        pad = images.train.pad
        for i, padded in enumerate(images.train.pixels.numpy()):
            for y in range(pad - crop, pad + crop + 1):
                for x in range(pad - crop, pad + crop + 1):
                    window = padded[y : y + SIDE, x : x + SIDE]
                    self.known[window.tobytes()] = (i, y, x, False)
                    self.known[window[:, ::-1].tobytes()] = (i, y, x, True)

    def __call__(self, x_CHW: torch.Tensor) -> tuple[int, int, int, bool]:
        pixels = x_CHW.permute(1, 2, 0).double().numpy()
        raw = pixels * np.array(self.images.std) + np.array(self.images.mean)
        return self.known[np.round(raw).astype(np.uint8).tobytes()]


def epoch_of(images: Images, recipe, epoch: int, **arguments) -> list[tuple]:
    return list(batches(images, recipe, seed=0, epoch=epoch, **arguments))


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
        generator = torch.Generator().manual_seed(data._mixed(0, 1))
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
            ({"cutout": 8}, "recipe.cutout is 8, and images have 8 pixels a side"),
        ],
    )
    def test_wrong_values_are_refused(self, tiny, values, said):
        with pytest.raises(ValueError, match=re.escape(said)):
            replace(tiny, recipe=replace(tiny.recipe, **values))


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


# --- Splits -------------------------------------------------------------------------------------


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


# --- Sources ------------------------------------------------------------------------------------


class TestSources:
    def test_parquet_with_img_structs_and_label(self, load, tmp_path):
        write_parquet(tmp_path / "hf/train-00000-of-00002.parquet", [0, 1, 2, 0] * 3)
        write_parquet(tmp_path / "hf/train-00001-of-00002.parquet", [1] * 8)
        write_parquet(tmp_path / "hf/test-00000-of-00001.parquet", [2, 1])
        images = load(tmp_path / "hf")
        assert [len(s) for s in (images.train, images.validation, images.test)] == [18, 2, 2]
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
        folder = tmp_path / "wide" / "a"
        folder.mkdir(parents=True)
        wide = np.zeros((2 * SIDE, 6 * SIDE, 3), dtype=np.uint8)
        wide[:, 2 * SIDE : 4 * SIDE] = 200  # the middle third
        for i in range(8):
            grey = Image.fromarray(wide).convert("L" if i % 2 else "RGB")
            grey.save(folder / f"{i}.png")
        images = load(tmp_path / "wide")
        inner = images.train.pixels[:, 1:-1, 1:-1]
        assert inner.shape == (8, SIDE, SIDE, 3)
        assert (inner[:, :, 1:-1] > 190).all()

    def test_a_name_is_looked_for_under_the_root(self, load, tmp_path, monkeypatch):
        write_folder(tmp_path / "root" / "beans", {"healthy": 12, "rust": 8})
        monkeypatch.setenv("RAYBENCH_DATA", str(tmp_path / "root"))
        assert load("beans").classes == 2

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

    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    @pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
    def test_truncated_image_in_a_folder(self, load, tmp_path, kind, share):
        write_folder(tmp_path / "x", {"a": 4, "b": 4})
        content = encoded(noise(1)[0], kind)
        broken = tmp_path / "x" / "b" / f"002.{'png' if kind == 'PNG' else 'jpg'}"
        broken.write_bytes(content[: int(share * len(content))])
        self.refused(load, tmp_path / "x", str(broken), "no readable image")

    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    def test_truncated_image_in_parquet(self, load, tmp_path, kind):
        cells = [encoded(pixels, kind) for pixels in noise(4)]
        cells[2] = cells[2][: len(cells[2]) // 2]
        path = write_parquet(tmp_path / "x/train.parquet", [0, 1, 0, 1], cells=cells)
        self.refused(load, tmp_path / "x", f"row 2 of {path}", "no readable image")

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

    def test_label_in_words(self, load, tmp_path):
        write_parquet(tmp_path / "x/train.parquet", ["cat", "dog"])
        self.refused(load, tmp_path / "x", str(tmp_path / "x"), "label cat", "image 0")

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


# --- The cache ----------------------------------------------------------------------------------


class TestCache:
    @pytest.fixture
    def decoded(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Every image that is decoded from here on."""
        found: list[str] = []
        opened = sources._opened

        def count(file, where, size):
            found.append(where)
            return opened(file, where, size)

        monkeypatch.setattr(sources, "_opened", count)
        return found

    def test_is_used_the_second_time(self, load, tmp_path, decoded):
        folder = write_folder(tmp_path / "x", {"a": 8, "b": 8})
        before = load(folder)
        assert len(decoded) == 16
        data._arrays.cache_clear()  # as in a new process
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
        data._arrays.cache_clear()
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
