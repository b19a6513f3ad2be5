"""The user's own model, given by the import path of its factory: `package.module:factory`.

The factory is called as `factory(classes=…, image_size=…)` and returns a fresh nn.Module that maps
images (B, 3, image_size, image_size) to logits (B, classes).
"""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from raybench.experiment import nearest
from raybench.models import source

_built: WeakSet[nn.Module] = WeakSet()  # detects a factory that returns the same module twice


def build(name: str, *, classes: int, image_size: int) -> nn.Module:
    """The module that the factory returns.

    Raises:
        ValueError: there is no factory at the path, or it does not return a fresh nn.Module.
    """
    factory = factory_of(name)
    _check_signature(name, factory)
    try:
        model = factory(classes=classes, image_size=image_size)
    except (Exception, SystemExit) as error:
        raise ValueError(f"the model {name} cannot be built: {explained(error)}") from error
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ValueError(f"{name} returned the class {model.__name__}: return an instance of it")
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} returned {type(model).__name__}: return an nn.Module")
    if model in _built:  # the next run would start from this run's weights
        raise ValueError(f"{name} returned the same module twice: build a new one in every call")
    _built.add(model)
    return model


def explained(error: BaseException) -> str:
    """An exception of the user's code in one line: file, line, type and message."""
    file, line = getattr(error, "filename", None), getattr(error, "lineno", None)
    if not isinstance(error, SyntaxError) or file is None:
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame for frame in frames if _is_theirs(frame.filename)] or frames
        file, line = theirs[-1].filename, theirs[-1].lineno
    path = Path(file)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{shown}:{line}: {type(error).__name__}: {' '.join(text.split())}"


def _is_theirs(file: str) -> bool:
    path = Path(file)
    here = Path(__file__).parents[1]  # of raybench
    return path.is_file() and not source.is_installed(path) and not path.is_relative_to(here)


def _module(name: str) -> ModuleType:
    module, _ = source.parts(name)
    source.located(module)
    try:
        with torch.random.fork_rng(devices=[]):  # a seed set in the file must not affect the run
            return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{module} cannot be imported: {explained(error)}") from error


def factory_of(name: str) -> Callable[..., Any]:
    """The object at the import path. Raises ValueError if it cannot be imported or called."""
    module, (_, attribute) = _module(name), source.parts(name)
    factory = getattr(module, attribute, None)
    if callable(factory):
        return factory
    if factory is not None:
        raise ValueError(f"{name} is a {type(factory).__name__}, not a function or class to call")
    callables = [
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    advice = nearest(attribute, callables) if callables else "it defines no function"
    raise ValueError(f"{module.__name__} has no {attribute!r}; {advice}")


def _check_signature(name: str, factory: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some functions written in C have no signature
        return
    try:
        signature.bind(classes=1, image_size=1)
    except TypeError as error:
        raise ValueError(
            f"{name} takes {signature}, but is called with (classes=…, image_size=…): {error}; "
            "give it these two parameters, and defaults for all others"
        ) from error
