"""The file of a trained model: what is shipped, and what every table's accuracy and bytes are of.

A quantized model is stored as the packed file (`packed`), every other as safetensors with pruned
weights left out (`sparse_safetensors`). Which one a file is, its first bytes say. Both hold the
Experiment, so `load` alone gives back the plain torch module. Nothing is ever unpickled.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from raybench.artefact import grid, packed, sparse_safetensors
from raybench.artefact.stored import Stored
from raybench.experiment import Experiment
from raybench.models import build, is_import_path, outline, with_source
from raybench.techniques import Progress

LARGEST = 2**31  # values of the largest model that a file's header is believed to be of


def encode(model: nn.Module, experiment: Experiment, classes: int, *, seen: str = "") -> bytes:
    """The file's content for this model; `seen` is what it was trained on (`Images.seen`)."""
    kind = packed if grid.is_quantized(model.state_dict()) else sparse_safetensors
    return kind.encode(model, experiment, classes, seen=seen)


def encoded_bytes(model: nn.Module, experiment: Experiment, classes: int, *, seen: str = "") -> int:
    """`len(encode(...))`; for what is not quantized without a second copy of the model."""
    if grid.is_quantized(model.state_dict()):
        return len(packed.encode(model, experiment, classes, seen=seen))
    return sparse_safetensors.encoded_bytes(model, experiment, classes, seen=seen)


def save(
    model: nn.Module, experiment: Experiment, classes: int, path: Path, *, seen: str = ""
) -> int:
    """Writes the model to `path`, whole or not at all; gives the file's bytes."""
    return write(encode(model, experiment, classes, seen=seen), path)


def write(content: bytes, path: Path) -> int:
    """Writes a file whole or not at all; gives its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path.stat().st_size


def load(path: Path | str, model: str = "") -> nn.Module:
    """The trained model as a plain torch module in evaluation mode, from its file alone.

    Args:
        model: names the model again where it is one by import path: no file has code imported.

    Raises:
        ValueError: the file holds no trained model, or a damaged one; or one whose import path
            is not `model`, or has another source now.
    """
    stored = about(path)
    experiment = stored[0]
    if is_import_path(experiment.model):
        if experiment.model != model:
            raise ValueError(
                f"{path} holds a model of {experiment.model}, which is imported only where it is "
                f"named again: --model {experiment.model}"
            )
        try:
            with_source(experiment)
        except ValueError as error:
            raise ValueError(f"{path} cannot be loaded: {error}") from error
    try:
        loaded = skeleton(stored.experiment, stored.classes)
    except ValueError as error:  # of a model's name, or of a technique that does not fit it
        raise ValueError(f"{path} holds no trained model: {error}") from error
    restore(loaded, path)
    return loaded.eval()


def about(path: Path | str) -> Stored:
    """The Experiment that the stored model is of, its classes, and what it was trained on.

    Raises ValueError."""
    try:
        if is_packed(path):
            return packed.opened(Path(path).read_bytes()).stored
        return sparse_safetensors.about(path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no trained model: {error}") from error


def skeleton(experiment: Experiment, classes: int) -> nn.Module:
    """A model of the stored one's architecture, with fresh weights; an import path is imported.

    Raises:
        ValueError: no library has the model, or it is too large to be true.
    """
    # Sizes without memory: a damaged header can ask for any.
    sizes = outline(experiment.model, classes=classes, image_size=experiment.image_size)
    values = sum(tensor.numel() for tensor in sizes.state_dict().values())
    if values > LARGEST:
        raise ValueError(f"{experiment.model} would have {values:,} values")
    model = build(experiment.model, classes=classes, image_size=experiment.image_size)
    for _, technique in experiment.techniques():
        technique.reshape(model)
        technique.restructure(model, Progress(1, 1), {})
    return model


def restore(model: nn.Module, path: Path | str) -> None:
    """Fills a model of the file's architecture with the stored weights.

    Raises:
        ValueError: the file holds no trained model, or another one.
    """
    own = model.state_dict()
    try:
        if not is_packed(path):
            for name, stored in sparse_safetensors.tensors(path, own):
                own[name].copy_(stored)
            return
        found = packed.opened(Path(path).read_bytes())
        if found.fingerprint != packed.fingerprint(own):
            raise sparse_safetensors.OtherModel(_difference(own, found))
        for name, stored in packed.decode(found, own).items():
            own[name].copy_(stored)
    except sparse_safetensors.OtherModel as error:
        raise ValueError(f"{path} is another model: they differ in {error}") from error
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no trained model: {error}") from error


def is_packed(path: Path | str) -> bool:
    with open(path, "rb") as file:
        return file.read(len(packed.MAGIC)) == packed.MAGIC


def _difference(own: dict[str, Tensor], found: packed.Packed) -> str:
    """The first tensor in which a model differs from the one that the file's Experiment builds."""
    described = found.stored.experiment
    if is_import_path(described.model):  # whose code is not run for an error's text
        return f"the names or shapes of weights: it is of {described.model}"
    stored = skeleton(described, found.stored.classes).state_dict()
    names = sorted(own.keys() ^ stored.keys()) or [
        name for name in own if own[name].shape != stored[name].shape
    ]
    return names[0] if names else "their types"
