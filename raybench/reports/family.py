"""A family's table by its name, without importing the trainer, which needs torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pandas as pd

Table = Callable[[pd.DataFrame, pd.DataFrame, float], pd.DataFrame]
"""A function of the trials, the epochs and an accuracy to reach."""


def table(name: str) -> Table | None:
    """The function `table` of `reports/tables/NAME.py`, or of your own module; else None.

    Your own family is a dotted name, or a file added to `trainers/`.
    """
    places = [name] if "." in name else [f"{__package__}.tables.{name}", f"trainers.{name}"]
    for place in places:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not place.startswith(error.name):
                raise  # the module exists, but one of its own imports is missing
            continue
        function: Table | None = getattr(module, "table", None)
        return function
    return None
