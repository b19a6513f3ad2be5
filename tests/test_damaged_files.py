"""Damaged files of every kind that raybench loads: refused in one line, or the very same content.

A file is read by all that read its kind: functions, which may raise nothing but ValueError, and
commands, which end with 2 and one line on standard error.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from damaged_files import damaged
from PIL import Image
from shipped_files import INPUTS, sealed, stored_models
from torch import Tensor

from raybench import artefact, data, export, predict
from raybench.artefact import checksum, onnx_graph, packed, served_graph, sparse_safetensors
from raybench.experiment import Experiment, recipe_file
from raybench.training import checkpoint, trained
from raybench.training.first_model import first_model
from raybench.training.loop import fit
from trainers.pruning import base

pytestmark = pytest.mark.slow

SMALL = replace(base, model="vit32x1", image_size=8)


@dataclass(frozen=True)
class Kind:
    """A kind of file: an undamaged one, what reads it, and the commands that read it."""

    content: bytes
    suffix: str
    read: dict[str, Callable[[Path], object]]
    """Reader -> what it gives back, as plain values that can be compared."""
    commands: dict[str, Callable[[Path], int]]
    edited: bool = False
    """Whether people edit the file, so that other content may be meant."""


def values(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {
        name: f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
        + tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in tensors.items()
    }


def plain(content: object) -> object:
    """Nested values in which tensors are bytes."""
    if isinstance(content, Tensor):
        return values({"": content})
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    return content


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    folder = tmp_path_factory.mktemp("undamaged")
    photo = folder / "photo.png"
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(photo)
    stored = stored_models(folder)
    start = replace(SMALL, prune=None)
    student = artefact.skeleton(start, 10)
    artefact.save(student, start, 10, folder / "start", inputs=INPUTS)

    def loaded(path: Path) -> object:
        return values(artefact.load(path).state_dict()), artefact.about(path)

    def as_teacher(path: Path) -> object:
        teacher = trained.load(str(path), SMALL, 10, torch.device("cpu"))
        return values(teacher.state_dict())

    def started(path: Path) -> object:
        return values(first_model(replace(start, start_from=str(path)), 10).state_dict())

    def classified(path: Path) -> object:
        inputs, classify = predict.opened(path)
        pixels = served_graph.random_images(inputs, 2)
        with torch.inference_mode():
            return inputs, values({"": classify(pixels)})

    def exporting(path: Path) -> int:
        return export.run(export.Export(file=str(path), out=folder / "out.packed"))

    def predicting(path: Path) -> int:
        return predict.run(predict.Predict(file=path, images=(photo,)))

    reading = {"load": loaded, "teacher": as_teacher, "predict": classified}
    commands = {"export": exporting, "predict": predicting}
    made = {
        "packed": Kind(stored["packed"].read_bytes(), "packed", reading, commands),
        "safetensors": Kind(stored["safetensors"].read_bytes(), "safetensors", reading, commands),
        "start": Kind(
            (folder / "start").read_bytes(),
            "safetensors",
            {**reading, "start": started},
            commands,
        ),
    }
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    fp32 = onnx_graph.fp32_graph(student, 8)
    graphs = {"fp32 graph": fp32, "int8 graph": onnx_graph.int8_graph(student, fp32, [images])}
    for name, graph in graphs.items():
        content = served_graph.served(graph, INPUTS, SMALL)
        made[name] = Kind(content, "onnx", {"predict": classified}, {"predict": predicting})
    recipe_file.write(folder / "recipe.json", SMALL, {})
    made["recipe"] = Kind(
        (folder / "recipe.json").read_bytes(), "json", {"recipe": recipe_file.read}, {}, edited=True
    )
    return made | {"checkpoint": saved_state(folder)}


def saved_state(folder: Path) -> Kind:
    """The checkpoint of a run after the first of two epochs."""
    recipe = replace(base.recipe, epochs=2, batch=32, crop=1, precision="fp32")
    experiment: Experiment = replace(SMALL, subset=0.05, recipe=recipe)
    run = fit(experiment, data.load(experiment))
    next(run).save(folder / "state")
    run.close()

    def resumed(path: Path) -> object:
        """As `raybench.train --checkpoint` does: a damaged file counts as none."""
        usable = checkpoint.usable(path)
        if usable is None:
            raise ValueError(f"{path} is damaged")
        return plain(checkpoint.read(usable, experiment, torch.device("cpu")))

    return Kind((folder / "state").read_bytes(), "pt", {"resume": resumed}, {})


def wrongs(kind: Kind, path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is wrong with how the damaged file at `path` is read."""
    wrong, content, refused = [], path.read_bytes(), False
    for name, read in kind.read.items():
        path.write_bytes(content)  # a damaged checkpoint is moved aside
        try:
            result = read(path)
        except ValueError as error:
            refused = True
            if "\n" in str(error) or str(path) not in str(error):
                wrong.append(f"advice of {name}: {error}")
        except Exception as error:
            wrong.append(f"exception of {name}: {type(error).__name__}: {error}")
        else:
            if result != undamaged(kind, name, path) and not kind.edited:
                wrong.append(f"other content by {name}")
            path.write_bytes(content)
    for name, command in kind.commands.items() if refused else ():
        capsys.readouterr()
        try:
            code = command(path)
        except Exception as error:
            wrong.append(f"traceback of {name}: {type(error).__name__}: {error}")
            continue
        printed = capsys.readouterr()
        if code != 2 or printed.err.count("\n") != 1 or printed.out:
            wrong.append(f"command {name}: {code} {printed}")
    return wrong


def undamaged(kind: Kind, reader: str, path: Path) -> object:
    path.write_bytes(kind.content)
    return kind.read[reader](path)


def check(kinds: dict[str, Kind], folder: Path, seeds: range, capsys: pytest.CaptureFixture[str]):
    """Damages a file of each kind in turn, one per seed."""
    wrong: list[str] = []
    for seed in seeds:
        draw, name = random.Random(seed), [*kinds][seed % len(kinds)]
        content, how = damaged(kinds[name].content, draw)
        path = folder / f"damaged.{kinds[name].suffix}"
        path.write_bytes(content)
        wrong += [f"{w} (seed {seed}, {name} {how})" for w in wrongs(kinds[name], path, capsys)]
    counts = Counter(text.partition(" ")[0] for text in wrong)
    assert not wrong, "\n".join([str(counts), *wrong])


def test_undamaged_files_are_read(kinds, memory_path, capsys):
    for kind in kinds.values():
        path = memory_path / f"whole.{kind.suffix}"
        path.write_bytes(kind.content)
        assert wrongs(kind, path, capsys) == []
        assert all(command(path) == 0 for command in kind.commands.values())


def test_damaged_files_are_refused(kinds, memory_path, capsys):
    check(kinds, memory_path, range(150), capsys)


def check_forged(
    kinds: dict[str, Kind], folder: Path, seeds: range, capsys: pytest.CaptureFixture[str]
):
    """Damage under a right checksum, as whoever writes a file on purpose can give it.

    Another model may come out, but no other exception and no traceback.
    """
    wrong: list[str] = []
    for seed in seeds:
        draw, name = random.Random(seed), ["packed", "safetensors", "start"][seed % 3]
        content, how = damaged(kinds[name].content, draw)
        if name == "packed":
            content = packed.seal(content[packed.START :])
        elif len(content) > sparse_safetensors.CHECKSUM + checksum.DIGITS:
            content = sealed(content)
        path = folder / f"forged.{kinds[name].suffix}"
        path.write_bytes(content)
        forged = replace(kinds[name], edited=True)
        wrong += [f"{w} (seed {seed}, {name} {how})" for w in wrongs(forged, path, capsys)]
    assert not wrong, "\n".join(wrong)


def test_forged_files_raise_no_other_errors(kinds, memory_path, capsys):
    check_forged(kinds, memory_path, range(60), capsys)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_thousand_forged_files(kinds, memory_path, capsys):
    check_forged(kinds, memory_path, range(60, 1060), capsys)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_three_thousand_damaged_files(kinds, memory_path, capsys):
    check(kinds, memory_path, range(150, 3150), capsys)
