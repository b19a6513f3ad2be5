"""Converts frozen dataclasses to plain values and back, with type checks of every value."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from raybench.arguments.nearest import nearest


@cache
def hints_of(cls: Any) -> dict[str, Any]:
    """Field name -> evaluated type. Class variables do not count as fields."""
    hints = get_type_hints(cls)
    return {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar}


def dataclass_in(hint: Any) -> type | None:
    """The dataclass in `X` or `X | None`."""
    for candidate in (hint, *get_args(hint)):
        if isinstance(candidate, type) and is_dataclass(candidate):
            return candidate
    return None


def column_types(cls: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Dotted names and types of the leaves; the type of a Literal is that of its values."""
    for name, hint in hints_of(cls).items():
        inner = dataclass_in(hint)
        if inner is not None:
            yield from column_types(inner, f"{prefix}{name}.")
        else:
            kind = type(get_args(hint)[0]) if get_origin(hint) is Literal else hint
            yield f"{prefix}{name}", kind


def as_dict(value: Any) -> Any:
    """Nested dicts; an int in a float field becomes a float, so that 1 and 1.0 give one key."""
    if not is_dataclass(value):
        return value
    kind: Any = type(value)
    hints = hints_of(kind)
    plain = {}
    for field in fields(value):
        inner = getattr(value, field.name)
        is_float = hints[field.name] is float and inner is not None
        plain[field.name] = float(inner) if is_float else as_dict(inner)
    return plain


def without_defaults(value: Any) -> dict[str, Any]:
    """`as_dict` without the fields that have their default value."""
    changed: dict[str, Any] = {}
    kind: Any = type(value)
    hints = hints_of(kind)
    for field in fields(value):
        inner = getattr(value, field.name)
        if inner == field.default:
            continue
        if is_dataclass(inner):
            changed[field.name] = without_defaults(inner)
        else:
            changed[field.name] = float(inner) if hints[field.name] is float else inner
    return changed


def build(cls: Any, values: dict[str, Any], where: str) -> Any:
    """The dataclass with these values. Raises ValueError that names a field of a wrong type."""
    hints = hints_of(cls)
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
        hint = dataclass_in(hint) or hint
    if is_dataclass(hint) and isinstance(value, dict):
        return build(hint, value, where)
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
