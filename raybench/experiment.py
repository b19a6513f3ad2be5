"""Experiment: everything that decides one training run, except the machine."""

from __future__ import annotations

import difflib
import hashlib
import json
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from raybench.techniques import Technique
from raybench.techniques.prune import Prune

__all__ = ["Experiment", "Parallel", "Recipe", "columns", "flatten", "from_json", "nearest"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the model is trained: optimizer, learning-rate curve, batch, augmentation, precision."""

    epochs: int = 10
    batch: int = 128
    """Images a step, over all workers together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    """Applied to weights of convolutions and linear layers; never to norms and biases."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate's way from `lr` to 0, after the warm-up."""
    warmup: float = 0.1
    """Share of all steps in which the learning rate rises from 0."""
    label_smoothing: float = 0.0
    crop: int = 4
    """Largest shift of the random crop, in pixels; 0 is no crop."""
    flip: bool = True
    """Horizontal flips: each image once each way in every two epochs (airbench's scheme)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 is autocast; `auto` takes it where the processor has it. Evaluation is in fp32."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}: it must be above 0")
        for name in ("momentum", "weight_decay", "crop"):
            if not getattr(self, name) >= 0:  # `not >=`, so that NaN is refused as well
                raise ValueError(f"{name} is {getattr(self, name)}: it must not be negative")
        for name in ("warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it lies in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How one step is spread over workers."""

    workers: int = 1
    strategy: Literal["ddp"] = "ddp"

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}: it must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training run. Hashable; `key()` is the same in every process and version."""

    family: str
    """Module under `trainers/`, or the dotted name of a trainer of your own."""
    model: str
    data: str = "digits"
    """digits, cifar10, cifar100, beans, or a folder of images."""
    image_size: int = 32
    subset: float = 1.0
    """Share of the training images that is used."""
    seed: int = 0
    """Decides the split, the first weights, the order and the augmentation."""
    recipe: Recipe = Recipe()
    parallel: Parallel = Parallel()

    # The techniques. They are applied in the order in which they stand here.
    prune: Prune | None = None

    def __post_init__(self) -> None:
        if not 0 < self.subset <= 1:
            raise ValueError(f"subset is {self.subset}: a share in (0, 1]")
        if self.image_size < 8:
            raise ValueError(f"image_size is {self.image_size}: 8 pixels or more")
        if self.recipe.batch % self.parallel.workers:
            raise ValueError(
                f"recipe.batch {self.recipe.batch} does not divide over "
                f"{self.parallel.workers} workers"
            )

    def techniques(self) -> list[tuple[str, Technique]]:
        """The techniques that are on, with their field names, in order of application."""
        found = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, value) for name, value in found if isinstance(value, Technique)]

    def key(self) -> str:
        """16 hex digits that name this experiment.

        Fields at their defaults do not count, so a new field with a default changes no key.
        """
        said = json.dumps(_said(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        return json.dumps(_plain(self))


def from_json(text: str) -> Experiment:
    """The Experiment that `to_json` wrote. Raises ValueError that names a wrong field."""
    experiment = _build(Experiment, json.loads(text), "Experiment")
    assert isinstance(experiment, Experiment)
    return experiment


def checked(experiment: Experiment) -> Experiment:
    """The same experiment with every value's type checked against its field, as `from_json` does.

    Dataclasses do not check types themselves: `lr="0.1"` would fail only in the optimizer.
    """
    return _build(Experiment, asdict(experiment), "Experiment")


def columns() -> dict[str, type]:
    """Column name -> type of an Experiment in a table: `model`, `recipe.lr`, `prune.power`, …"""
    return dict(_columns(Experiment, ""))


def technique_types() -> dict[str, type[Technique]]:
    """Field name -> class of every technique that an Experiment can have, in order."""
    types = {name: _dataclass_in(hint) for name, hint in _hints(Experiment).items()}
    return {name: kind for name, kind in types.items() if kind and issubclass(kind, Technique)}


def flatten(experiment: Experiment) -> dict[str, Any]:
    """The Experiment as one row of `columns()`; None where a technique is off."""
    plain = _plain(experiment)
    row: dict[str, Any] = {}
    for name in columns():
        value: Any = plain
        for part in name.split("."):
            value = None if value is None else value[part]
        row[name] = value
    return row


def nearest(name: str, valid: list[str]) -> str:
    """Advice for a misspelt name: "did you mean 'lr'?", or the valid names, or a few of many."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    if len(valid) > 50:
        return f"there are {len(valid)}, such as {', '.join(valid[:5])}"
    return f"there are {', '.join(sorted(valid))}"


# --- Dataclasses to and from plain values -------------------------------------------------------


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass in `X` or `X | None`."""
    for candidate in (hint, *get_args(hint)):
        if isinstance(candidate, type) and is_dataclass(candidate):
            return candidate
    return None


def _columns(cls: type, prefix: str) -> Iterator[tuple[str, type]]:
    for name, hint in _hints(cls).items():
        inner = _dataclass_in(hint)
        if inner is not None:
            yield from _columns(inner, f"{prefix}{name}.")
        else:
            kind = type(get_args(hint)[0]) if get_origin(hint) is Literal else hint
            yield f"{prefix}{name}", kind


def _plain(value: Any) -> Any:
    """Nested dicts; an int in a float field becomes a float, so that 1 and 1.0 are one key."""
    if not is_dataclass(value):
        return value
    kind: Any = type(value)
    hints = _hints(kind)
    plain = {}
    for field in fields(value):
        inner = getattr(value, field.name)
        is_float = hints[field.name] is float and inner is not None
        plain[field.name] = float(inner) if is_float else _plain(inner)
    return plain


def _said(value: Any) -> dict[str, Any]:
    """`_plain` without what stands at its default."""
    said: dict[str, Any] = {}
    kind: Any = type(value)
    hints = _hints(kind)
    for field in fields(value):
        inner = getattr(value, field.name)
        if inner == field.default:
            continue
        if is_dataclass(inner):
            said[field.name] = _said(inner)
        else:
            said[field.name] = float(inner) if hints[field.name] is float else inner
    return said


def _build(cls: Any, values: dict[str, Any], where: str) -> Any:
    hints = _hints(cls)
    for name in values:
        if name not in hints:
            raise ValueError(f"{where} has no field {name!r}; {nearest(name, list(hints))}")
    try:
        return cls(**{k: _value(hints[k], v, f"{where}.{k}") for k, v in values.items()})
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        hint = _dataclass_in(hint) or hint
    if is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, value, where)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            advice = nearest(str(value), [str(choice) for choice in get_args(hint)])
            raise ValueError(f"{where} is {value!r}; {advice}")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{where} is {value!r}; it must be of type {hint.__name__}")
    return value
