"""`python -m raybench`, which lists the commands and runs one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raybench import __main__ as commands

RAYBENCH = Path(commands.__file__).parent


def test_every_command_is_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["raybench"])
    assert commands.main() == 0
    listed = capsys.readouterr().out
    files = {path.stem for path in RAYBENCH.glob("*.py")} - {"__init__", "__main__"}
    packages = {path.parent.name for path in RAYBENCH.glob("*/__main__.py")}
    assert set(commands.COMMANDS) == files | packages
    for name in files | packages:
        assert f"  {name} " in listed


def test_a_misspelt_command_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["raybench", "tunes"])
    assert commands.main() == 2
    assert capsys.readouterr().err == "raybench: no command 'tunes'; did you mean 'tune'?\n"


@pytest.mark.workers
def test_a_command_runs_by_its_name():
    done = subprocess.run(
        [sys.executable, "-m", "raybench", "report", "nowhere"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("raybench.report: nowhere holds no results")
