"""The columns of a sweep's two tables: the core's, the Experiment's and those of all techniques.

They are the same for every family and space, so that tables of any two sweeps can be concatenated.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import pyarrow as pa

from raybench.experiment import plain
from raybench.experiment.experiment import Experiment, technique_types
from raybench.results import core
from raybench.results.column import Column
from raybench.results.schema import schema_of


def schemas(about: Mapping[str, Any]) -> tuple[pa.Schema, pa.Schema]:
    """Schemas of the trials and epochs tables. `about` is stored in the files' metadata."""
    return schema_of(trial_columns(), about), schema_of(epoch_columns(), about)


def trial_columns() -> dict[str, Column]:
    """Columns of the table with one row per trial."""
    return core.IDENTITY | core.OUTCOME | inputs() | metric_columns() | core.PROVENANCE


def epoch_columns() -> dict[str, Column]:
    """Columns of the table with one row per trial and epoch."""
    return core.IDENTITY | {"epoch": core.EPOCH} | metric_columns()


def metric_columns() -> dict[str, Column]:
    """All metrics that a run may report: the core's and those of all techniques."""
    return core.METRICS | technique_columns()


@cache
def technique_columns() -> dict[str, Column]:
    """The metrics of all techniques, and each technique's coverage of the model."""
    columns: dict[str, Column] = {}
    for field, technique in technique_types().items():
        for name, column in {**technique.columns, **_coverage(field)}.items():
            assert name not in core.CORE, f"{field} declares {name}, which is a core column"
            # Two techniques may report the same column if they declare it identically.
            assert columns.setdefault(name, column) == column, f"{name} is declared twice"
    return columns


@cache
def inputs() -> dict[str, Column]:
    """The Experiment's fields by dotted name, each described by its docstring."""
    texts = dict(_texts(Experiment))
    types = dict(plain.column_types(Experiment))
    return {name: Column(kind, "", texts.get(name, "")) for name, kind in types.items()}


def by_owner() -> dict[str, dict[str, Column]]:
    """All columns in order, grouped by their owner: the core, the Experiment, each technique."""
    owners = {
        "Identity and outcome": core.IDENTITY | core.OUTCOME,
        "Metrics of every run": core.METRICS,
    }
    types = technique_types()
    groups: dict[str, dict[str, Column]] = {}
    for name, column in inputs().items():
        group = name.partition(".")[0] if "." in name else "Experiment"
        groups.setdefault(group, {})[name] = column
    for name in [name for name in groups if name not in types]:
        owners[f"Inputs: {name}"] = groups.pop(name)
    for name, technique in types.items():
        owners[f"Technique: {name}"] = {**groups[name], **technique.columns, **_coverage(name)}
    return owners | {"Provenance": core.PROVENANCE}


def markdown() -> str:
    """The content of `docs/columns.md`: the meaning of every column."""
    lines = [
        "# The columns",
        "",
        "Printed by `python -m raybench.report --columns`. Every sweep has all columns, so tables",
        "of any two sweeps concatenate; columns that do not apply to a trial are null. Names with",
        "a dot are inputs, the fields of an Experiment. Metrics are in both tables,",
        "`trials/trials.parquet` and `epochs/*.parquet`.",
    ]
    for owner, columns in by_owner().items():
        lines += ["", f"## {owner}", "", "| column | type | unit | meaning |", "|---|---|---|---|"]
        for name, column in columns.items():
            text = column.text.replace("|", "\\|")
            lines.append(f"| `{name}` | {column.type.__name__} | {column.unit} | {text} |")
    return "\n".join(lines)


def _coverage(technique: str) -> dict[str, Column]:
    text = f"Share of the model's weights on which `{technique}` acts; null where it is off."
    return {f"{technique}_coverage": Column(float, "share", text)}


def _texts(cls: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names of a dataclass's leaves with their docstrings, each on one line."""
    docstrings = _docstrings(cls)
    for name, hint in plain.hints_of(cls).items():
        inner = plain.dataclass_in(hint)
        if inner is not None:
            yield from _texts(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", docstrings.get(name, "")


def _docstrings(cls: type) -> dict[str, str]:
    """The string after each field, read from the source because Python does not keep it."""
    tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls.__name__)
    texts = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            name, value = field.target, text.value
            if isinstance(name, ast.Name) and isinstance(value, ast.Constant):
                texts[name.id] = " ".join(str(value.value).split())
    return texts
