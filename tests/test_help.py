"""`--help` of every command fits two screens, and explains what it shows; --help-all has it all."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from raybench import compare, export, predict, report, submit, train, tune
from raybench.__main__ import COMMANDS
from raybench.arguments.explanations import explanations
from raybench.arguments.refusal import flags, refusal
from raybench.bench import __main__ as bench
from raybench.doctor import __main__ as doctor
from raybench.experiment import Experiment, Parallel, Pipeline, Recipe, technique_types
from raybench.reports import technique_matrix
from raybench.verdict.options import Compare

PARSE = {
    "compare": compare.parse,
    "tune": tune.parse,
    "train": train.parse,
    "submit": submit.parse,
    "report": report.parse,
    "export": export.parse,
    "predict": predict.parse,
    "techniques": technique_matrix.parse,
    "bench": bench.parse,
    "doctor": doctor.parse,
}
OPTIONS = [
    *(Compare, tune.Tune, train.Train, report.Report, export.Export, predict.Predict),
    *(technique_matrix.Techniques, bench.Bench, submit.Submit, doctor.Doctor),
]
PARTS = {"experiment", "recipe", "parallel", "pipeline"} | set(technique_types())
"""Fields that hold other dataclasses: the docstrings of these explain them."""
LINES, COLUMNS = 60, 80


def page(command: str, flag: str, capsys, monkeypatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    with pytest.raises(SystemExit) as end:
        PARSE[command]([flag])
    assert end.value.code in (0, None)
    return capsys.readouterr().out.splitlines()


def shown(lines: list[str]) -> set[str]:
    """The options that a page lists."""
    rows = [match[1] for line in lines if (match := re.match(r"[ │]{1,3}(-{1,2}[a-z].*)", line))]
    return {flag for row in rows for flag in re.findall(r"--[\w.-]+", row.partition("   ")[0])}


def test_every_command_is_tried():
    assert set(PARSE) == set(COMMANDS)


@pytest.mark.parametrize("command", PARSE)
def test_help_fits_two_screens_with_its_examples_first(command, capsys, monkeypatch):
    lines = page(command, "--help", capsys, monkeypatch)
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS
    examples = next(number for number, line in enumerate(lines) if line == "Examples:")
    assert lines[examples + 2].startswith(f"  python -m raybench.{command}")
    assert examples < 8


@pytest.mark.parametrize("command", PARSE)
def test_the_examples_of_a_help_can_be_typed(command, capsys, monkeypatch):
    text = "\n".join(page(command, "--help", capsys, monkeypatch)).replace(" \\\n", " ")
    examples = re.findall(rf"^  python -m raybench\.{command} ?(.*)$", text, re.MULTILINE)
    assert examples
    for example in examples:
        if not re.search(r"my_models|recipe\.json|\"", example):
            PARSE[command](example.split())


@pytest.mark.parametrize("command", PARSE)
def test_help_all_holds_every_option(command, capsys, monkeypatch):
    brief = shown(page(command, "--help", capsys, monkeypatch))
    lines = page(command, "--help-all", capsys, monkeypatch)
    assert brief <= shown(lines) | {"--help"}
    kind = next(kind for kind in OPTIONS if kind.__name__.lower() == command)
    default = train.Train(experiment=with_techniques()) if command == "train" else None
    options = {flag for flag in flags(kind, default) if flag.startswith("--")}
    positional = {f"--{name}" for name in ("file", "images", "folders", "name")}
    assert options - shown(lines) <= (positional if command != "train" else set())


def with_techniques() -> Experiment:
    parts = {name: kind() for name, kind in technique_types().items()}
    return Experiment(family="pruning", model="resnet20", **parts)


@pytest.mark.parametrize(
    "kind",
    [*OPTIONS, Experiment, Recipe, Parallel, Pipeline, *technique_types().values()],
    ids=lambda kind: kind.__name__,
)
def test_every_field_is_explained(kind):
    assert {field.name for field in fields(kind)} - PARTS <= set(explanations(kind))
    assert all(text.endswith((".", "…")) for text in explanations(kind).values())


def test_an_unknown_box_is_still_one_line():
    box = "╭─ New error ─╮\n│ Something   │\n│ is wrong    │\n╰─────────────╯\n"
    assert refusal(box, tune.Tune) == "Something is wrong"


@pytest.mark.workers
def test_a_light_command_stays_light():
    """A mistake and the help of the report load neither torch nor Ray."""
    program = """
import sys
from dataclasses import fields
from raybench.report import parse
for typed in (["--help"], ["--htlm"]):
    try:
        parse(typed)
    except SystemExit:
        pass
print({"torch", "ray"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent.parent,
    )
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
