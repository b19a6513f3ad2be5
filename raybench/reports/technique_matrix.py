"""Which techniques and ways to run can be combined, and how much of a model each covers."""

from __future__ import annotations

import copy
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from torch import nn

from raybench.arguments.parse import parse as command_line
from raybench.experiment import nearest, technique_types
from raybench.experiment.compatible import declarations, executions
from raybench.models import build
from raybench.techniques import Apart, Technique
from raybench.techniques.layers.weights import coverage

WIDTH = 80
NAME = 16  # width of a row's name
WIDEST = 7  # largest width of a column


@dataclass(frozen=True, kw_only=True)
class Techniques:
    """Prints which techniques can be combined with each other and with each way to run a step.

    Examples:

      python -m raybench.techniques
      python -m raybench.techniques --pair monarch prune
      python -m raybench.techniques --model resnet20
      python -m raybench.techniques --model my_package.my_models:tiny --image-size 64 --classes 5

    With a model it also prints the share of its weights on which each technique acts with default
    settings, or why the technique does not fit.
    """

    model: str = ""
    """A model's name, such as vit_tiny_patch16_224, or import path, package.module:factory."""
    image_size: int = 32
    """Side of the model's images in pixels."""
    classes: int = 10
    """Classes of the model."""
    pair: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME NAME")] = ()
    """Two of the names in the matrix: prints only whether these can be combined."""


@dataclass
class Notes:
    """Footnotes without duplicates, and the letters that refer to them."""

    texts: list[str] = field(default_factory=list)

    def letter(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        number = self.texts.index(text)
        return chr(ord("a") + number % 26) * (1 + number // 26)

    def lines(self) -> list[str]:
        return [
            line
            for text in self.texts
            for line in textwrap.wrap(
                f"{self.letter(text)}  {text}", WIDTH, subsequent_indent="   "
            )
        ]


def matrix() -> str:
    """The table of all pairs, with its footnotes; at most 80 columns wide."""
    techniques, notes = list(technique_types()), Notes()
    wide = min(WIDEST, (WIDTH - NAME) // len(techniques))
    head = " " * NAME + "".join(f"{n:>{wide}}" for n in range(1, len(techniques) + 1))
    lines = [head.rstrip()]
    for row in [*techniques, *executions()]:
        number = f"{techniques.index(row) + 1} " if row in techniques else "  "
        cells = [
            "·" if row == column else _cell(list(declarations(row, column)), notes)
            for column in techniques
        ]
        lines.append((number + row).ljust(NAME) + "".join(f"{cell:>{wide}}" for cell in cells))
    legend = ["", "✓ together   – not together   (if) not together on a condition", ""]
    return "\n".join([*lines, *legend, *notes.lines()])


def _cell(aparts: Sequence[Apart], notes: Notes) -> str:
    """✓, or – with the footnote letters of the reasons, or only the letters in parentheses."""
    always = [apart for apart in aparts if apart.when is None]
    if always:
        return "–" + ",".join(dict.fromkeys(notes.letter(_footnote(apart)) for apart in always))
    letters = dict.fromkeys(notes.letter(_footnote(apart)) for apart in aparts)
    return f"({','.join(letters)})" if letters else "✓"


def _footnote(apart: Apart) -> str:
    return f"if {apart.condition}: {apart.reason}" if apart.condition else apart.reason


def pair(one: str, other: str) -> str:
    """Whether two parts can be combined. Raises ValueError if a name is unknown."""
    names = [*technique_types(), *executions()]
    for name in (one, other):
        if name not in names:
            raise ValueError(f"no technique and no way to run {name!r}; {nearest(name, names)}")
    if not {one, other} & set(technique_types()):
        raise ValueError(f"neither {one} nor {other} is a technique: give at least one")
    texts = [
        f"{one} and {other} cannot be combined{' if ' if apart.condition else ''}"
        f"{apart.condition}: {apart.reason}"
        for apart in declarations(one, other)
    ]
    together = [f"{one} and {other} can be combined"]
    return "\n".join(line for text in texts or together for line in textwrap.wrap(text, WIDTH))


def coverages(model: nn.Module) -> str:
    """One line per technique: the share of the model's weights on which it acts, or why not."""
    lines = []
    for name, kind in technique_types().items():
        reached = covered(model, kind())
        result = f"{100 * reached:5.1f} %" if isinstance(reached, float) else f"– {reached}"
        lines += textwrap.wrap(name.ljust(NAME) + result, WIDTH, subsequent_indent=" " * (NAME + 2))
    return "\n".join(lines)


def covered(model: nn.Module, technique: Technique) -> float | str:
    """The share of the values of `model` on which the technique acts, or why it does not fit.

    The technique changes only a copy.
    """
    changed = copy.deepcopy(model)
    try:
        technique.reshape(changed)
    except ValueError as error:
        return str(error)
    return coverage(changed, technique.acts_on(changed)) or "it acts on no weight of this model"


def parse(arguments: list[str]) -> Techniques:
    """The command line. Raises SystemExit."""
    return command_line(Techniques, arguments, "techniques")


def run(arguments: list[str]) -> int:
    """The exit code: 0, or 2 for an unknown name."""
    options = parse(arguments)
    try:
        if options.pair:
            if len(options.pair) != 2:
                raise ValueError(f"--pair takes two names, but got {len(options.pair)}")
            if options.pair[0] == options.pair[1]:
                raise ValueError(f"--pair has {options.pair[0]} twice: name two techniques")
            print(pair(*options.pair))
        else:
            print(matrix())
        if options.model:
            model = build(options.model, classes=options.classes, image_size=options.image_size)
            size = f"{options.image_size} pixels, {options.classes} classes"
            print(f"\nCoverage of {options.model} ({size}), at default settings")
            print(coverages(model))
    except ValueError as error:
        print(f"raybench.techniques: {error}", file=sys.stderr)
        return 2
    return 0
