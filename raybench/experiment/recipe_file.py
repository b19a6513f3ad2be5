"""A recipe file for `raybench.train`: an Experiment as JSON, with notes for readers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from raybench.experiment.experiment import Experiment, from_json
from raybench.results import whole


def write(path: Path, experiment: Experiment, told: Mapping[str, Any]) -> None:
    """Writes the file; `told` are notes for readers, which no code uses."""
    content = {"experiment": json.loads(experiment.to_json()), "told": dict(told)}
    whole.write(path, json.dumps(content, indent=2) + "\n")


def read(path: Path | str) -> Experiment:
    """The Experiment of a file that `write` wrote; `path` may be an address.

    Raises:
        ValueError: there is no such file, or it is not a recipe file.
        StoreError: the store at an address refuses access or does not answer.
    """
    # Imported here, because a trial's process does not need file systems.
    from raybench.results.remote import fetched

    file = fetched.file(path)
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"{path} is not a recipe file: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a recipe file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("experiment"), dict):
        raise ValueError(f"{path} is not a recipe file: it has no experiment")
    try:
        return from_json(json.dumps(content["experiment"]))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error


def named_in(arguments: list[str]) -> str | None:
    """The value of --recipe-file; that file sets the defaults of the other flags."""
    for argument, after in pairwise([*arguments, ""]):
        flag, sign, value = argument.partition("=")
        if flag == "--recipe-file":
            value = value if sign else after
            return value or None
    return None
