"""Data sets as people have them: each is read right, or refused in one line with advice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from image_files import experiment as experiment
from image_files import load as load
from layouts import Write, both, empty, file, folders, huge, image, link, parquet, saved, splits
from PIL import Image

from raybench.data import Images, sources

AB = ("a", "b")
NAMED = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
SWAPPED = {"label": {"_type": "ClassLabel", "names": ["dog", "cat"]}}

# What is written, the images of each split that the source has, and the classes.
RIGHT: dict[str, tuple[Write, dict[str, int], tuple[str, ...]]] = {
    "classes": (folders("a", "b"), {"train": 8}, AB),
    "train, test": (splits("train", "test"), {"train": 8, "test": 8}, AB),
    "train, valid, test": (
        splits("train", "valid", "test"), {"train": 8, "validation": 8, "test": 8}, AB,
    ),
    "Train, Test": (splits("Train", "Test"), {"train": 8, "test": 8}, AB),
    "TRAIN, VAL": (splits("TRAIN", "VAL"), {"train": 8, "validation": 8}, AB),
    "training, testing": (splits("training", "testing"), {"train": 8, "test": 8}, AB),
    "training, validation": (splits("training", "validation"), {"train": 8, "validation": 8}, AB),
    "train, dev, eval": (
        splits("train", "dev", "eval"), {"train": 8, "validation": 8, "test": 8}, AB,
    ),
    "train2017, val2017": (splits("train2017", "val2017"), {"train": 8, "validation": 8}, AB),
    "Training Set, Test Set": (splits("Training Set", "Test Set"), {"train": 8, "test": 8}, AB),
    "TrainImages, TestImages": (splits("TrainImages", "TestImages"), {"train": 8, "test": 8}, AB),
    "cifar_train, cifar_test": (splits("cifar_train", "cifar_test"), {"train": 8, "test": 8}, AB),
    "trainset, validset, testset": (
        splits("trainset", "validset", "testset"), {"train": 8, "validation": 8, "test": 8}, AB,
    ),
    "Trainingdata, Testdataset": (splits("Trainingdata", "Testdataset"),
                                  {"train": 8, "test": 8}, AB),
    "1_train, 2_val": (splits("1_train", "2_val"), {"train": 8, "validation": 8}, AB),
    "wrapper of two words": (splits("Data/CLS-LOC/train", "Data/CLS-LOC/val"),
                             {"train": 8, "validation": 8}, AB),
    "train alone": (splits("train"), {"train": 8}, AB),
    "wrapper": (splits("wrapper/train", "wrapper/test"), {"train": 8, "test": 8}, AB),
    "two wrappers": (splits("x/y/train", "x/y/test"), {"train": 8, "test": 8}, AB),
    "wrapper named test": (splits("my_test_data/train", "my_test_data/val"),
                           {"train": 8, "validation": 8}, AB),
    "wrapper around classes": (folders("photos/a", "photos/b"), {"train": 8}, AB),
    "split within a split": (splits("seg_train/seg_train", "seg_test/seg_test"),
                             {"train": 8, "test": 8}, AB),
    "images within a split": (splits("train/images", "test/images"), {"train": 8, "test": 8}, AB),
    "splits within classes": (folders("a/train", "a/test", "b/train", "b/test"),
                              {"train": 8, "test": 8}, AB),
    "classes named like splits": (splits("train", "test", classes=("bus", "train")),
                                  {"train": 8, "test": 8}, ("bus", "train")),
    "classes named like splits, train alone": (
        splits("train", classes=("bus", "train")), {"train": 8}, ("bus", "train"),
    ),
    "hidden folders": (
        both(folders("a", "b", ".ipynb_checkpoints", "__MACOSX/a", ".git/c", "@eaDir/a")),
        {"train": 8}, AB,
    ),
    "hidden files": (
        both(folders("a", "b"), file("a/._0.png", b"?"), file("a/.DS_Store", b"?"),
             file("Thumbs.db", b"?"), file("b/Thumbs.db", b"?"), file("b/desktop.ini", b"?")),
        {"train": 8}, AB,
    ),
    "labels beside": (
        both(folders("a", "b"), file("labels.csv", b"?"), file("a/0.json", b"?"),
             file("annotations/0.xml", b"?")),
        {"train": 8}, AB,
    ),
    "names in many letters": (folders("Ärger", "日本 語", "c d"), {"train": 12},
                              ("c d", "Ärger", "日本 語")),
    "names that are numbers": (folders("0", "1", "10", "2"), {"train": 16}, ("0", "1", "10", "2")),
    "images without an ending": (both(folders("a", "b"), file("a/x", image())), {"train": 9}, AB),
    "endings in capitals": (both(folders("a", "b"), file("a/x.PNG", image())), {"train": 9}, AB),
    "another kind than its ending": (both(folders("a", "b"), file("a/x.jpg", image())),
                                     {"train": 9}, AB),
    "links to folders": (both(folders(".store/a", "b"), link("a", ".store/a"), link("b/up", ".")),
                         {"train": 8}, AB),
    "a link to an image": (both(folders("a", "b"), link("b/x.png", "a/0.png")), {"train": 9}, AB),
    "classes named like files": (folders("cat.png", "dog.png"), {"train": 8},
                                 ("cat.png", "dog.png")),
    "classes that differ in case": (folders("a", "A"), {"train": 8}, ("A", "a")),
    "one pixel": (both(folders("a", "b"), file("a/x.png", saved(Image.new("L", (1, 1)), "PNG"))),
                  {"train": 9}, AB),
    "parquet, cifar_test": (
        both(parquet("cifar_train.parquet"), parquet("cifar_test.parquet")),
        {"train": 8, "test": 8}, ("0", "1"),
    ),
    "parquet in parts": (
        both(parquet("data/train-00000-of-00002.parquet"),
             parquet("data/train-00001-of-00002.parquet"),
             parquet("data/validation-00000-of-00001.parquet")),
        {"train": 16, "validation": 8}, ("0", "1"),
    ),
    "parquet, partial-train": (parquet("default/partial-train/0000.parquet"), {"train": 8},
                               ("0", "1")),
    "parquet beside a picture": (both(parquet("train.parquet"), file("assets/a.png", image())),
                                 {"train": 8}, ("0", "1")),
    "parquet with names": (parquet("train.parquet", features=NAMED), {"train": 8}, ("cat", "dog")),
    "parquet with labels in words": (parquet("train.parquet", ["dog", "cat"] * 4), {"train": 8},
                                     ("cat", "dog")),
    "parquet with categories": (
        parquet("train.parquet", pa.array(["dog", "cat"] * 4).dictionary_encode()),
        {"train": 8}, ("cat", "dog"),
    ),
    "parquet with yes and no": (parquet("train.parquet", [True, False] * 4), {"train": 8},
                                ("False", "True")),
    "parquet with bytes": (parquet("train.parquet", cells=[image() for _ in range(8)]),
                           {"train": 8}, ("0", "1")),
    "parquet with large bytes": (
        parquet("train.parquet", cells=pa.array([image() for _ in range(8)], pa.large_binary())),
        {"train": 8}, ("0", "1"),
    ),
    "parquet with views": (
        parquet("train.parquet", pa.array(["x", "y"] * 4, pa.string_view()),
                cells=pa.array([image() for _ in range(8)], pa.binary_view())),
        {"train": 8}, ("x", "y"),
    ),
    "parquet in parts without a split": (
        both(parquet("0000.parquet"), parquet("0001.parquet")), {"train": 16}, ("0", "1"),
    ),
    "parquet with declared columns": (
        parquet("train.parquet", columns=("picture", "kind"), features={
            "picture": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": ["x", "y"]}}),
        {"train": 8}, ("x", "y"),
    ),
}  # fmt: skip

# What is written, and words of the line that refuses it.
REFUSED: dict[str, tuple[Write, list[str]]] = {
    "unknown split": (splits("train", "holdout"), ["holdout beside train", "which split", "eval"]),
    "unknown split in a wrapper": (splits("x/train", "x/extra"), ["extra beside train"]),
    "split of two words": (splits("train", "train_test"), ["train_test", "which split"]),
    "a class beside a split": (folders("train/a", "train/b", "c"), ["c beside train"]),
    "a class named train": (folders("bus", "train", "car"), ["into one folder named train"]),
    "two names for one split": (splits("train", "val", "valid"), ["val, valid all mean"]),
    "two cases for one split": (splits("train", "Train"), ["Train, train all mean train"]),
    "the data twice": (splits("x/train", "y/train"), ["x/train, y/train all mean train"]),
    "no train": (splits("test"), ["it has test images but none to train on"]),
    "flat": (file("0.png", image()), ["the folder itself", "one subfolder per class"]),
    "flat beside classes": (both(folders("a", "b"), file("0.png", image())), ["the folder itself"]),
    "flat splits": (folders("train", "test"), ["in test, not in the folder of a class"]),
    "flat test": (both(splits("train"), folders("test")), ["images lie in test"]),
    "nested classes": (folders("pets/cat", "pets/dog", "cars/bus"), ["is the class cars or bus"]),
    "two depths": (folders("a", "b", "b/more"), ["images lie in b/more"]),
    "two depths in a split": (folders("train/a", "train/b/more"), ["images lie in train/b/more"]),
    "one class": (folders("a"), ["all images are of one class (a)"]),
    "one class in splits": (folders("train/a", "test/a"), ["one class (a)"]),
    "a class in test alone": (folders("train/a", "train/b", "test/c"), ["class c has test images"]),
    "a class spelled otherwise": (folders("train/a", "train/b", "test/A"), ["spelled alike"]),
    "no images": (file("notes.txt", b"?"), ["no images there"]),
    "heic": (both(folders("a"), file("b/0.heic", b"?")), ["0.heic", "convert it to PNG or JPEG"]),
    "video": (both(folders("a"), file("b/0.mp4", b"?")), ["0.mp4", "has an unsupported file type"]),
    "arrow": (file("train/data-00000.arrow", b"?"), ["data-00000.arrow"]),
    "an archive": (file("train.zip", b"?"), ["no images there, but .zip files: unpack them"]),
    "a link to a missing image": (both(folders("a", "b"), link("a/x.png", "gone/x.png")),
                                  ["a/x.png is a link to", "gone/x.png, which is missing"]),
    "a link to a missing class": (both(folders("a", "b"), link("c", "gone")), ["gone, which is"]),
    "an unknown split above classes": (splits("trn", "tst"), ["splits are named train"]),
    "empty image": (both(folders("a", "b"), file("b/x.png", b"")), ["x.png is not a readable"]),
    "text as image": (both(folders("a", "b"), file("b/x.png", b"hello")), ["x.png", "Replace"]),
    "truncated image": (both(folders("a", "b"), file("b/x.png", image()[:120])), ["x.png"]),
    "196 megapixels": (both(folders("a", "b"), file("b/x.png", huge(14000, 14000))),
                       ["x.png", "196000000 pixels"]),
    "100 megapixels": (both(folders("a", "b"), file("b/x.png", huge(10000, 10000))),
                       ["x.png", "10000 x 10000 pixels"]),
    "parquet with a label of 10^9": (parquet("train.parquet", [0, 1, 10**9, 1]),
                                     ["label 1000000000", "number the classes from 0"]),
    "parquet with urls": (parquet("train.parquet", cells=["http://x/0.png"] * 8),
                          ["the column image", "URLs", "store each image's own bytes"]),
    "parquet with paths": (
        parquet("train.parquet", cells=[{"bytes": None, "path": "a.png"}] * 8),
        ["holds null, not images", "store each image's own bytes"],
    ),
    "parquet with lists": (parquet("train.parquet", cells=[[image()]] * 8), ["holds lists"]),
    "parquet with pixels": (parquet("train.parquet", cells=[[[1], [3]]] * 8), ["holds lists"]),
    "parquet with nested images": (
        parquet("train.parquet", cells=[{"image": {"bytes": image()}}] * 8),
        ["structs without the field bytes"],
    ),
    "parquet with numbers as images": (parquet("train.parquet", cells=[1] * 8), ["holds int64"]),
    "parquet with several labels": (parquet("train.parquet", [[0, 1]] * 8), ["the column label"]),
    "parquet with measured labels": (parquet("train.parquet", [0.5, 1.5] * 4), ["holds double"]),
    "parquet with a label missing": (parquet("train.parquet", [0, None, 1, 1]), ["label None"]),
    "parquet with a word missing": (parquet("train.parquet", ["x", None, "y", "y"]),
                                    ["label None of train image 1"]),
    "parquet, numbers and words": (
        both(parquet("train.parquet"), parquet("test.parquet", ["a", "b"])),
        ["some labels are numbers and some are names"],
    ),
    "parquet without rows": (
        parquet("train.parquet", pa.array([], "int64"), cells=pa.array([], "binary")), ["no rows"],
    ),
    "parquet of one class": (parquet("train.parquet", [0] * 8), ["one class"]),
    "parquet with other names in test": (
        both(parquet("train.parquet", features=NAMED), parquet("test.parquet", features=SWAPPED)),
        ["test.parquet names the classes dog, cat, but train.parquet names them cat, dog"],
    ),
    "parquet with one name twice": (
        parquet("train.parquet", features={"label": {"_type": "ClassLabel", "names": ["x", "x"]}}),
        ["two classes have the name x"],
    ),
    "parquet without its second part": (
        parquet("train-00000-of-00002.parquet"), ["train-00001-of-00002.parquet is missing"],
    ),
    "parquet of two configurations": (
        both(parquet("fine/train.parquet"), parquet("coarse/train.parquet")),
        ["coarse/*.parquet, fine/*.parquet all mean train"],
    ),
    "parquet that is none": (file("train.parquet", b"PAR1 no"), ["train.parquet", "a readable"]),
    "parquet with an unknown split": (
        both(parquet("train.parquet"), parquet("extra.parquet")), ["extra.parquet beside"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_is_read_right(name, memory_path, load):
    write, counts, class_names = RIGHT[name]
    write(memory_path)
    contents = sources.find(str(memory_path), memory_path / "cache").contents()
    assert {split: len(listed.labels) for split, listed in contents.splits.items()} == counts
    assert contents.class_names == class_names
    images = load(memory_path)
    assert images.class_names == class_names
    assert sum(len(s) for s in (images.train, images.validation, images.test)) == sum(
        counts.values()
    )


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_one_line(
    name: str, memory_path: Path, load: Callable[..., Images], own_cache: Path
):
    write, words = REFUSED[name]
    write(memory_path)
    with pytest.raises(ValueError, match="--data") as error:
        load(memory_path)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert not own_cache.exists() or all(not path.is_dir() for path in own_cache.iterdir())


def test_labels_follow_their_images(load, memory_path):
    """By a class's own shade, whatever the layout."""
    shades = {"a": 40, "b": 200}
    for split in ("train", "val"):
        for name, shade in shades.items():
            for number in range(4):
                pixels = np.full((8, 8, 3), shade + number, np.uint8)
                path = memory_path / "wrapper" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    images = load(memory_path)
    for split in (images.train, images.validation, images.test):
        for row in split.rows.tolist():
            shade = int(split.pixels[row, 4, 4, 0])
            assert images.class_names[split.labels[row]] == ("a" if shade < 100 else "b")


@pytest.mark.parametrize(
    ("write", "remark"),
    [
        (both(folders("a", "b"), empty("c")), "folders without images are left out: c"),
        (both(folders("a", "b"), file("c/x.txt", b"?")), "folders without images are left out: c"),
        (both(splits("train"), empty("test/a")), "folders without images are left out: test"),
        (parquet("train.parquet", [1, 2] * 4), "classes without images: 0"),
    ],
)
def test_what_is_empty_is_told(write, remark, memory_path):
    write(memory_path)
    contents = sources.find(str(memory_path), memory_path / "cache").contents()
    assert remark in contents.remarks


def test_there_are_more_than_eighty():
    assert len(RIGHT) + len(REFUSED) >= 80
