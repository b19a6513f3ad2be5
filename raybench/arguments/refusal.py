"""Converts tyro's error box about a command line to one line with advice."""

from __future__ import annotations

import ast
import re
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from raybench.arguments.nearest import nearest

KINDS = {"int": "a whole number", "float": "a number", "path": "a path", "str": "a text"}
SWITCH_VALUES = {"yes", "no", "true", "false", "on", "off"}


def refusal(box: str, kind: Any, default: Any = None) -> str:
    """The error, and what to type instead.

    Args:
        box: tyro's output, in unwrapped lines.
        kind: the dataclass of the options; `default` has their default values.
    """
    # The box is drawn in Unicode or in ASCII; its first row that is not a line is the title.
    rows = [row.strip(" │╭╮╰╯|+") for row in box.splitlines()]
    title, *content = [row for row in rows if row.strip("─-")] or [""]
    text = " ".join(" ".join(content or [title]).split())
    if match := re.search(r"Unrecognized options: (\S+?),?(?: |$)", text):
        return _unknown(match[1], flags(kind, default))
    if match := re.match(
        r"invalid choice '(.*?)' for argument '(\S+)'. Expected .*?(\(.*?\))", text
    ):
        choices = [str(choice) for choice in ast.literal_eval(match[3])]
        return f"{match[2]} is {match[1]!r}; {nearest(match[1], choices)}"
    if match := re.match(r"Missing value for argument '(\S+)'", text):
        return f"{match[1]} needs a value"
    if match := re.match(r"Missing from .*?: (\S+)(?: [A-Z]{2,}\S*)? (.*?)\(required\)", text):
        return f"{match[1]} is missing: {match[2].strip()}"
    if match := re.match(
        r"Error parsing (\S+): (.*?)(?: Argument helptext: .*| For full .*)?$", text
    ):
        return _wrong_value(match[1], match[2])
    return text


def _unknown(typed: str, valid: list[str]) -> str:
    option = typed.partition("=")[0].replace("_", "-")
    if option in valid:
        return f"{option} is given twice, or has a value too many"
    if option.lower() in SWITCH_VALUES:
        return f"{typed!r} belongs to no option; switches have no value: --name or --no-name"
    if not option.startswith("-"):
        return f"{typed!r} belongs to no option; options begin with --"
    # The options of a group, such as --prune.sparsity, differ in their last part.
    group = [flag for flag in valid if flag.startswith(option.partition(".")[0] + ".")]
    return f"there is no option {option}; {nearest(option, group or valid)}"


def _wrong_value(option: str, reason: str) -> str:
    typed = re.search(r"from \[(.*?)\]|: ('.*?')$", reason)
    kind = re.search(r"class '(int|float)'|for (int)\(\)|to (float)", reason)
    if typed and kind:
        wanted = KINDS[next(name for name in kind.groups() if name)]
        return f"{option} is {typed[1] or typed[2]}: it must be {wanted}"
    group = option.removeprefix("experiment.")
    return f"{group}.{reason}" if re.match(r"\w+ is ", reason) else f"{group}: {reason}"


def flags(kind: Any, default: Any = None, prefix: str = "") -> list[str]:
    """All options of a dataclass, including those of nested dataclasses."""
    hints = get_type_hints(kind, include_extras=True)
    options: list[str] = []
    for field in fields(kind):
        hint, name = hints[field.name], field.name.replace("_", "-")
        value = getattr(default, field.name, None)
        inner = [value.__class__, *get_args(hint), hint]
        nested = next((one for one in inner if isinstance(one, type) and is_dataclass(one)), None)
        if nested is not None:
            renamed = get_origin(hint) is not None and any(
                getattr(part, "name", None) == "" for part in getattr(hint, "__metadata__", ())
            )
            options += flags(nested, value, prefix if renamed else f"{prefix}{name}.")
        else:
            options.append(f"--{prefix}{name}")
            if hint is bool:
                options.append(f"--{prefix}no-{name}")
    return options
