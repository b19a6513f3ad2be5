"""The header of a trained model's file, in either format."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from raybench.data import inputs
from raybench.data.inputs import Inputs
from raybench.experiment import Experiment, from_json

LARGEST_HEADER = 1 << 24  # bytes; 100,000 class names take 2 MB
OLDER = "train it again, or load it with the raybench that wrote it"


class Stored(NamedTuple):
    """The header of a trained model's file."""

    experiment: Experiment
    classes: int
    seen: str = ""
    """The training images in the format of `raybench.data.seen`; empty if unknown."""
    inputs: Inputs | None = None
    """Its inputs and the names of its classes; None if unknown."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "experiment": json.loads(self.experiment.to_json()),
            "classes": self.classes,
            "seen": self.seen,
            "inputs": self.inputs and self.inputs.to_dict(),
        }


def from_dict(header: dict[str, Any]) -> Stored:
    """The inverse of `to_dict`.

    Raises:
        ValueError: the header has another format.
    """
    try:
        experiment = from_json(json.dumps(header["experiment"]))
        classes, seen, described = header["classes"], header["seen"], header["inputs"]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"its header is not an Experiment: {error}") from error
    if type(classes) is not int or classes < 1:
        raise ValueError(f"classes is {classes!r}: a number from 1 on")
    if not isinstance(seen, str):
        raise ValueError(f"seen is {seen!r}: a text")
    if described is None:
        return Stored(experiment, classes, seen)
    takes = inputs.from_dict(described)
    if len(takes.class_names) != classes:
        raise ValueError(f"it has {len(takes.class_names)} class names for {classes} classes")
    if takes.image_size != experiment.image_size:
        raise ValueError(
            f"its image_size is {takes.image_size}, but its Experiment has {experiment.image_size}"
        )
    return Stored(experiment, classes, seen, takes)
