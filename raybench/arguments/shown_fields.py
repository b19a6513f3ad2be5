"""Which fields of a dataclass tyro shows in a help text, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from raybench.arguments.explanations import explanations

Usual = Mapping[Any, tuple[str, ...]]
"""The fields of each dataclass that `--help` shows; for other dataclasses all fields."""


def shown_fields(usual: Usual) -> ConstructorRegistry:
    """A registry for help texts only: it contains only the usual fields."""
    registry = ConstructorRegistry()

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not dataclasses.is_dataclass(info.type):
            return None
        kind: Any = info.type
        hints, texts = get_type_hints(kind, include_extras=True), explanations(kind)
        specs = []
        for field in dataclasses.fields(kind):
            default = _default(field, info.default)
            hint = _without_none(hints[field.name], default)
            if field.name not in usual.get(kind, (field.name,)):
                hint = Annotated[hint, tyro.conf.Suppress]
            text = texts.get(field.name)
            specs.append(StructFieldSpec(field.name, hint, default, helptext=text))
        return StructConstructorSpec(kind, tuple(specs))

    return registry


def _default(field: dataclasses.Field[Any], whole: Any) -> Any:
    if dataclasses.is_dataclass(whole):
        return getattr(whole, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING if field.default is dataclasses.MISSING else field.default


def _without_none(hint: Any, default: Any) -> Any:
    """The type to show: without `None`, and without an empty default."""
    if default is not None and default not in ("", ()):
        return hint
    inner, *configured = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    settings: dict[str, Any] = {"help_behavior_hint": ""}
    kinds = [kind for kind in get_args(inner) if kind is not NoneType]
    if NoneType in get_args(inner) and len(kinds) == 1:
        settings["metavar"] = kinds[0].__name__.upper()
    # tyro uses each setting from the last configuration that has it.
    return Annotated[(inner, tyro.conf.arg(**settings), *configured)]
