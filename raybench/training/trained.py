"""A trained model by its address, for runs that start from it or learn from it.

teacher.safetensors           a file, as `raybench.train --store` writes it
results/sparsity_ladder#3     trial 3 of a sweep, if `--keep` has kept its model
s3://bucket/runs/ladder#3     the same at an address; it is fetched into the cache
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from raybench import artefact
from raybench.arguments.paths import require_file
from raybench.data import Images
from raybench.data.seen import UnreadableSketch, data_names, meets, united
from raybench.experiment import Experiment
from raybench.models import avoid_slow_bf16
from raybench.results.remote.address import is_remote, under
from raybench.training import measure


def find(address: str) -> Path:
    """The file of a trained model.

    Raises:
        ValueError: there is none; the message lists the existing ones.
        OSError: the store at an address refuses or does not answer.
    """
    if is_remote(address):
        return _fetched(address)
    path = Path(address)
    if path.is_file():
        return path
    folder, sign, trial = address.rpartition("#")
    if not sign:
        if path.is_dir():
            raise ValueError(f"{address} is a folder: name one of its trials, as in {address}#0")
        require_file(path)
    names = [file.name for file in sorted(Path(folder).glob("models/*-*"))]
    return Path(folder, "models", _name(names, folder, trial))


def _fetched(address: str) -> Path:
    """The same for a remote address: the file in this machine's cache."""
    # Imported here, because most trials' processes open no file systems.
    from raybench.results.remote import fetched

    folder, sign, trial = address.rpartition("#")
    if not sign:
        return fetched.file(address)
    name = _name(fetched.names(under(folder, "models")), folder, trial)
    return fetched.file(under(folder, "models", name))


def _name(names: Iterable[str], folder: str, trial: str) -> str:
    """The name of a trial's model among a sweep's files. Raises ValueError: there is none."""
    files = {_number(Path(name).stem): name for name in names}
    models = {number: name for number, name in files.items() if not name.endswith(".json")}
    if trial not in models:
        existing = f"there are {', '.join(sorted(models, key=int))}" if models else "there are none"
        raise ValueError(
            f"{folder} holds no model of trial {trial!r}; {existing} (--keep all keeps every one)"
        )
    return models[trial]


def load(address: str, experiment: Experiment, classes: int, device: torch.device) -> nn.Module:
    """A trained model in evaluation mode on `device`, for the images and classes of a run.

    Raises:
        ValueError: there is no such file, no trained model in it, or one for other images or
            classes.
    """
    path = find(address)
    described, theirs, *_ = artefact.about(path)
    if theirs != classes:
        raise ValueError(f"the model in {path} has {theirs} classes, but the data has {classes}")
    if described.image_size != experiment.image_size:
        raise ValueError(
            f"the model in {path} was trained on images of {described.image_size} pixels, but "
            f"these have {experiment.image_size}"
        )
    # Only the run's own import path may be imported, because the user has named it.
    model = artefact.load(path, experiment.model).to(device).to(memory_format=torch.channels_last)
    dtype, _ = measure.pick_dtype(experiment.recipe.precision, device)
    if device.type == "cpu" and dtype == torch.bfloat16:
        avoid_slow_bf16(model)
    return model


def honest(experiment: Experiment, images: Images) -> Images:
    """The images of a run, with a record of those behind its start model and its teachers.

    Call it before training, so that the run's file lists all images behind its weights.

    Raises:
        ValueError: there is no such model, or it was trained on the run's validation or test
            images, so accuracies on them would not be honest.
    """
    addresses = [address for _, technique in experiment.techniques() for address in technique.loads]
    if experiment.start_from and not experiment.start_from.startswith("timm:"):
        addresses.insert(0, experiment.start_from)
    for address in addresses:
        path = find(address)
        seen = artefact.about(path).seen
        try:
            for name, digests in images.held_out().items():
                if meets(seen, digests):
                    raise ValueError(
                        f"the model in {path} was trained on {name} images of {images.name} (its "
                        f"data: {data_names(seen)}), and this run would be scored on them: use a "
                        f"model that was trained on {images.name} itself, or on other images"
                    )
            inherited = united(images.inherited, seen)
        except UnreadableSketch as error:
            raise ValueError(f"{path} holds no trained model: {error}") from error
        images = replace(images, inherited=inherited)
    return images


def _number(trial: str) -> str:
    """`sparsity_ladder-0003` -> 3."""
    return trial.rpartition("-")[2].lstrip("0") or "0"
