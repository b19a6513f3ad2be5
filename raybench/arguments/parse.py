"""Parses a command line into the dataclass of its options, by tyro."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import tyro

from raybench.arguments.refusal import refusal
from raybench.arguments.shown_fields import Usual, shown_fields

Options = TypeVar("Options")
HELP, HELP_ALL = ("-h", "--help"), "--help-all"
WIDE = "100000"  # columns, so that no line of an error is wrapped


def parse(
    kind: type[Options],
    arguments: list[str],
    command: str,
    *,
    usual: Usual | None = None,
    default: Options | None = None,
    about: str = "",
) -> Options:
    """The options that were typed.

    Args:
        command: `train`, for python -m raybench.train.
        usual: the fields that --help shows; --help-all shows all fields.
        default: the default values of the options.
        about: lines below the description.

    Raises:
        SystemExit: 0 after a help text; 2 after a one-line error.
    """
    prog = f"python -m raybench.{command}"
    markers = (tyro.conf.AvoidSubcommands, tyro.conf.PositionalMetavarFromFieldName)
    given: dict[str, Any] = {"prog": prog, "config": markers}
    if default is not None:
        given["default"] = default
    if HELP_ALL in arguments or any(flag in arguments for flag in HELP):
        hidden = {} if HELP_ALL in arguments else usual or {}
        lines = [inspect.getdoc(kind) or "", about]
        if hidden:
            lines.append(f"More options: {prog} {HELP_ALL}")
        given["description"] = "\n\n".join(line for line in lines if line)
        page = io.StringIO()
        try:
            with contextlib.redirect_stdout(page):
                tyro.cli(kind, args=["--help"], registry=shown_fields(hidden), **given)
        finally:
            print(_fitted(page.getvalue(), shutil.get_terminal_size().columns))
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), _wide():
            options: Options = tyro.cli(kind, args=arguments, **given)
    except SystemExit as error:
        print(f"raybench.{command}: {refusal(box.getvalue(), kind, default)}", file=sys.stderr)
        raise SystemExit(2) from error
    sys.stderr.write(box.getvalue())
    return options


def _fitted(page: str, columns: int) -> str:
    """The help page with its long lines wrapped, which tyro does only in boxes."""
    lines = []
    for line in page.replace("\n\n\n", "\n\n").strip().splitlines():
        if line.startswith("  ") and len(line) > columns:  # an example, which a shell must read
            parts = textwrap.wrap(
                line, columns - 2, subsequent_indent=" " * 6, break_on_hyphens=False
            )
            lines.append(" \\\n".join(parts))
        else:
            lines += textwrap.wrap(line, columns) or [""]
    return "\n".join(lines)


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    before: Mapping[str, str] = dict(os.environ)
    os.environ["COLUMNS"] = WIDE
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        os.environ.update(before)
