"""python -m raybench.techniques: the matrix is that of the declarations."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest
from torch import nn

from raybench.experiment import technique_types
from raybench.experiment.compatible import declarations, executions
from raybench.models import build
from raybench.reports.technique_matrix import covered, run
from raybench.techniques import Technique
from raybench.techniques.monarch import Monarch
from raybench.techniques.prune import Prune


def test_every_pair_has_the_mark_of_its_declarations(capsys):
    assert run([]) == 0
    printed = capsys.readouterr().out
    rows = {
        line[2:16].strip(): line[16:].split()
        for line in printed.partition("\n\n")[0].splitlines()[1:]
    }
    techniques = list(technique_types())
    for one in [*techniques, *executions()]:
        assert len(rows[one]) == len(techniques)
        for other, cell in zip(techniques, rows[one], strict=True):
            aparts = list(declarations(one, other))
            if one == other:
                mark = "·"
            elif not aparts:
                mark = "✓"
            else:
                mark = "–" if any(apart.when is None for apart in aparts) else "("
            assert cell[0] == mark, (one, other)
            assert rows[other][techniques.index(one)] == cell if one in techniques else True
    for apart in (a for kind in technique_types().values() for a in kind.apart):
        flat = " ".join(printed.split())
        assert apart.reason in flat
        assert apart.condition in flat
    assert max(len(line) for line in printed.splitlines()) <= 80


def test_a_pair_alone(capsys):
    assert run(["--pair", "low_rank", "monarch"]) == 0
    assert "use only one of them" in " ".join(capsys.readouterr().out.split())
    assert run(["--pair", "distill", "zero3"]) == 0
    assert capsys.readouterr().out == "distill and zero3 can be combined\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pair", "prune", "monarc"], "did you mean 'monarch'"),
        (["--pair", "prune"], "takes two names"),
        (["--pair", "zero1", "zero2"], "give at least one"),
        (["--model", "resnet21"], "no model 'resnet21'"),
    ],
)
def test_bad_input_is_one_line(arguments, words, capsys):
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_the_coverage_of_a_model_and_reasons_where_nothing_fits(capsys):
    assert run(["--model", "resnet20", "--image-size", "16", "--classes", "3"]) == 0
    told = capsys.readouterr().out.partition("Coverage of resnet20 (16 pixels, 3 classes)")[2]
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in told.splitlines()[1:]}
    assert lines["prune"].endswith("%")
    assert lines["switch"].startswith("– ")
    assert "shortcut B" in " ".join(told.split())  # of prune_channels
    assert max(map(len, told.splitlines())) <= 80


def test_coverage_is_the_share_of_what_a_technique_acts_on():
    model = build("vit32x2", classes=10, image_size=8)
    before = [name for name, _ in model.named_parameters()]
    assert 0.9 < covered(model, Prune()) <= 1
    assert 0.1 < covered(model, Monarch()) <= 1
    assert [name for name, _ in model.named_parameters()] == before, "only a copy is changed"


@dataclass(frozen=True, kw_only=True)
class Idle(Technique):
    def acts_on(self, model: nn.Module) -> list[str]:
        return []


def test_a_technique_that_acts_on_nothing_is_told():
    assert covered(nn.Linear(2, 2), Idle()) == "it acts on no weight of this model"


@pytest.mark.workers
def test_the_command_shows_examples():
    command = [sys.executable, "-m", "raybench.techniques", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    for words in ("--model resnet20", "--pair monarch prune", "package.module:factory"):
        assert words in done.stdout
