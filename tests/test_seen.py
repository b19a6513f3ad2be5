"""A model that was trained on a run's test images is refused, and its file tells on it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import experiment as experiment
from image_files import load as load
from image_files import write_folder

from raybench import artefact
from raybench.data import Images, seen
from raybench.experiment import Experiment
from raybench.techniques.distill import Distill
from raybench.techniques.quantize import Quantize
from raybench.training import loop, replicated


def digests(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


class TestSketch:
    def test_meets_a_part_of_its_images_and_no_others(self):
        images = digests(1000)
        text = seen.sketch(images, "photos")
        assert seen.meets(text, images)
        assert seen.meets(text, images[:300])
        assert not seen.meets(text, digests(10_000, seed=1))
        assert not seen.meets("", images)

    def test_is_short_and_does_not_depend_on_the_order(self):
        images = digests(50_000)
        text = seen.sketch(images, "cifar10")
        assert text == seen.sketch(images[::-1], "cifar10")
        assert len(text) < 200

    def test_of_two_together_is_that_of_all_images(self):
        one, other = digests(100), digests(80, seed=1)
        union = seen.united(seen.sketch(one, "a"), "", seen.sketch(other, "b"))
        assert union == seen.sketch(np.concatenate([one, other]), "a, b")
        assert seen.united(union, seen.sketch(one, "a")) == union

    @pytest.mark.parametrize("text", ["?", "AAA a", "AAAA a", "\u00e4 a"])
    def test_another_text_is_refused(self, text):
        with pytest.raises(seen.UnreadableSketch, match="is not readable"):
            seen.meets(text, digests(3))


def run(experiment: Experiment, images: Images, path: Path) -> str:
    """Trains for an epoch; gives the stored model's path."""
    experiment = replace(experiment, recipe=replace(experiment.recipe, epochs=1))
    for _ in loop.fit(experiment, images, store=path):
        pass
    return str(path)


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "one", {"train/a": 12, "train/b": 12, "test/a": 4, "test/b": 4})


@pytest.fixture(params=["test", "validation"])
def leaking(request: pytest.FixtureRequest, one: Path, tmp_path: Path) -> Path:
    """A folder whose test or validation images are the training images of `one`."""
    fresh = write_folder(tmp_path / "fresh", {f"{c}/{c}": 8 for c in "uvwxyz"}, first_seed=10)
    folders = iter(sorted(fresh.glob("*/*")))
    for split in ("train", "validation", "test"):
        for c in "ab":
            source = one / "train" / c if split == request.param else next(folders)
            shutil.copytree(source, tmp_path / "two" / split / c)
    return tmp_path / "two"


def goes_on(experiment: Experiment, how: str, path: str) -> Experiment:
    if how == "teacher":
        return replace(experiment, distill=Distill(teacher=path))
    return replace(experiment, start_from=path)


@pytest.mark.parametrize("how", ["start_from", "teacher"])
class TestLeak:
    @pytest.mark.parametrize("quantize", [None, Quantize(bits=4)])
    def test_is_refused_before_training(
        self, experiment, load, one, leaking, tmp_path, monkeypatch, how, quantize
    ):
        trained = run(replace(experiment, quantize=quantize), load(one), tmp_path / "m")
        images = load(leaking)
        monkeypatch.setattr(replicated, "batches", lambda *_, **__: pytest.fail("it trained"))
        with pytest.raises(ValueError, match=r"was trained on (test|validation) images") as error:
            run(goes_on(experiment, how, trained), images, tmp_path / "n")
        assert "\n" not in str(error.value)
        for word in (trained, str(leaking), "its data: one", "use a model"):
            assert word in str(error.value)
        assert not (tmp_path / "n").exists()

    @pytest.mark.slow
    def test_is_not_washed_by_a_model_between(self, experiment, load, one, leaking, tmp_path, how):
        between = load(write_folder(tmp_path / "between", {"a": 20, "b": 20}, first_seed=20))
        first = run(experiment, load(one), tmp_path / "first")
        second = run(goes_on(experiment, how, first), between, tmp_path / "second")
        assert seen.data_names(artefact.about(second).seen) == "between, one"
        with pytest.raises(ValueError, match="its data: between, one"):
            run(goes_on(experiment, how, second), load(leaking), tmp_path / "third")

    @pytest.mark.slow
    def test_is_none_between_seeds_and_subsets_of_the_same_data(
        self, experiment, load, tmp_path, how
    ):
        few = {"subset": 0.05}
        trained = run(experiment, load("digits", seed=0, **few), tmp_path / "m")
        images = load("digits", seed=3, **few)
        on = goes_on(replace(experiment, seed=3), how, trained)
        path = run(on, images, tmp_path / "n")
        for split in (images.validation, images.test):
            for model in (trained, path):
                assert not seen.meets(artefact.about(model).seen, split.its_digests)

    def test_is_none_where_the_source_has_an_image_in_both_splits(
        self, experiment, load, one, tmp_path, how
    ):
        shutil.copy(one / "train" / "a" / "000.png", one / "test" / "a" / "copy.png")
        trained = run(experiment, load(one), tmp_path / "m")
        run(goes_on(experiment, how, trained), load(one, seed=1), tmp_path / "n")

    def test_is_not_known_of_a_model_without_a_sketch(self, experiment, load, one, tmp_path, how):
        torch.manual_seed(3)
        model = artefact.skeleton(experiment, 2)
        artefact.save(model, experiment, 2, tmp_path / "m")
        run(goes_on(experiment, how, str(tmp_path / "m")), load(one), tmp_path / "n")

    def test_an_unreadable_sketch_is_refused(self, experiment, load, one, tmp_path, how):
        model = artefact.skeleton(experiment, 2)
        artefact.save(model, experiment, 2, tmp_path / "m", seen="? digits")
        with pytest.raises(ValueError, match="holds no trained model: its training record"):
            run(goes_on(experiment, how, str(tmp_path / "m")), load(one), tmp_path / "n")
