"""The file of a trained model; accuracy and bytes in all tables are those of this file.

A quantized model is stored as a packed file (`packed`), every other as safetensors with pruned
weights left out (`sparse_safetensors`). The first bytes of a file tell which it is. Both contain
the Experiment, so that `load` needs only the file; the model's inputs and the names of its classes;
and a checksum that is verified before anything is decoded. Nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from raybench.arguments.paths import require_file
from raybench.artefact import grid, packed, sparse_safetensors
from raybench.artefact.stored import Stored
from raybench.data import Inputs
from raybench.experiment import Experiment
from raybench.models import build, is_import_path, outline, with_source
from raybench.techniques import Progress

# Largest number of values per byte of a model's file. Techniques and codecs make files small, but
# 2,000 values per byte would mean a sparsity of 99.97 %.
LARGEST, SMALL, VALUES_A_BYTE = 2**31, 10**7, 2000


def encode(
    model: nn.Module,
    experiment: Experiment,
    classes: int,
    *,
    seen: str = "",
    inputs: Inputs | None = None,
) -> bytes:
    """The file's content for this model.

    Args:
        seen: the images that it was trained on (`Images.seen`).
        inputs: its inputs and the names of its classes (`Images.inputs`).
    """
    kind = packed if grid.is_quantized(model.state_dict()) else sparse_safetensors
    return kind.encode(model, experiment, classes, seen=seen, inputs=inputs)


def encoded_bytes(
    model: nn.Module,
    experiment: Experiment,
    classes: int,
    *,
    seen: str = "",
    inputs: Inputs | None = None,
) -> int:
    """`len(encode(...))`; a model that is not quantized is measured without a second copy."""
    if grid.is_quantized(model.state_dict()):
        return len(packed.encode(model, experiment, classes, seen=seen, inputs=inputs))
    return sparse_safetensors.encoded_bytes(model, experiment, classes, seen=seen, inputs=inputs)


def save(
    model: nn.Module,
    experiment: Experiment,
    classes: int,
    path: Path,
    *,
    seen: str = "",
    inputs: Inputs | None = None,
) -> int:
    """Writes the model to `path` atomically; returns the file's size in bytes."""
    return write(encode(model, experiment, classes, seen=seen, inputs=inputs), path)


def write(content: bytes, path: Path) -> int:
    """Writes a file atomically; returns its size in bytes."""
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
        model: the import path of the model, if it has one. It must be given again, because a
            file must not cause the import of code.

    Raises:
        ValueError: the file contains no trained model, or a damaged one; or the model's import path
            is not `model`, or its source has changed.
    """
    stored = about(path)
    experiment = stored.experiment
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
    with refused(path):  # an unknown model name, or a technique that does not fit the model
        require_room(stored, Path(path).stat().st_size)
        loaded = skeleton(experiment, stored.classes)
    restore(loaded, path)
    return loaded.eval()


def about(path: Path | str) -> Stored:
    """The file's header, after a check of its checksum. Raises ValueError."""
    require_file(path)
    with refused(path):
        if is_packed(path):
            return packed.opened(Path(path).read_bytes()).stored
        return sparse_safetensors.about(path)


@contextmanager
def refused(path: Path | str) -> Iterator[None]:
    """Converts every error of a bad file into a one-line ValueError with the file's name."""
    try:
        yield
    except sparse_safetensors.OtherModel as error:
        raise ValueError(f"{path} is another model: they differ in {error}") from error
    # A forged header reaches the constructors of torch, timm and the techniques, which may raise
    # any error.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} holds no trained model: {reason}") from error


def require_room(stored: Stored, file_bytes: int) -> None:
    """Raises ValueError if a file is too small for the model that its header names.

    Allocates no weights, because a header can name any model.
    """
    experiment = stored.experiment
    sizes = outline(experiment.model, classes=stored.classes, image_size=experiment.image_size)
    values = sum(tensor.numel() for tensor in sizes.state_dict().values())
    if experiment.switch is not None:  # the only technique that makes a model much larger
        values *= 1 + experiment.switch.experts
    if values > min(LARGEST, SMALL + VALUES_A_BYTE * file_bytes):
        raise ValueError(
            f"{experiment.model} would have {values:,} values, too many for {file_bytes:,} bytes"
        )


def skeleton(experiment: Experiment, classes: int) -> nn.Module:
    """A model with the stored architecture and fresh weights; imports a model's import path.

    Raises:
        ValueError: no library has the model.
    """
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
    weights = model.state_dict()
    with refused(path):
        if not is_packed(path):
            for name, stored in sparse_safetensors.tensors(path, weights):
                weights[name].copy_(stored)
            return
        file = packed.opened(Path(path).read_bytes())
        if file.fingerprint != packed.fingerprint(weights):
            raise sparse_safetensors.OtherModel(_difference(weights, file))
        for name, stored in packed.decode(file, weights).items():
            weights[name].copy_(stored)


def is_packed(path: Path | str) -> bool:
    with open(path, "rb") as file:
        return file.read(len(packed.MAGIC)) == packed.MAGIC


def _difference(weights: dict[str, Tensor], file: packed.Packed) -> str:
    """The first tensor in which a model differs from that of the file's Experiment."""
    described = file.stored.experiment
    if is_import_path(described.model):  # its code must not run for the text of an error
        return f"the names or shapes of weights: it belongs to {described.model}"
    require_room(file.stored, len(file.streams))
    stored = skeleton(described, file.stored.classes).state_dict()
    names = sorted(weights.keys() ^ stored.keys()) or [
        name for name in weights if weights[name].shape != stored[name].shape
    ]
    return names[0] if names else "their types"
