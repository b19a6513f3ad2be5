"""Folders and Parquet files of images, and the fixtures that load them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raybench import data
from raybench.data import Images
from raybench.experiment import Experiment

SIDE = 8


def noise(count: int, seed: int = 0) -> np.ndarray:
    """Images of which no crop, mirrored or not, equals another."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_folder(folder: Path, counts: dict[str, int], *, first_seed: int = 0) -> Path:
    """`class` or `split/class` -> number of images; other seeds give other images."""
    for seed, (name, count) in enumerate(counts.items(), start=first_seed):
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
