"""`python -m raybench`, which lists the commands and runs one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import find_namespace_packages

from raybench import __main__ as commands
from raybench.arguments.paths import shipped
from raybench.search import space
from raybench.search.overrides import Overrides

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


def test_the_list_fits_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["raybench"])
    commands.main()
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_an_installed_package_is_whole():
    """Every folder with code, also the search spaces, which are no package of their own."""
    options = tomllib.loads((RAYBENCH.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    installed = find_namespace_packages(str(RAYBENCH.parent), **options["packages"]["find"])
    folders = {path.parent for path in RAYBENCH.rglob("*.py")}
    needed = {".".join(folder.relative_to(RAYBENCH.parent).parts) for folder in folders}
    assert set(installed) >= needed | {"trainers", "search_spaces"}


def test_shipped_spaces_load_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert space.load(shipped(Path("search_spaces/pruning.py")), Overrides()).family == "pruning"
    with pytest.raises(
        ValueError, match=r"prunning.py does not exist; did you mean '.*pruning.py'"
    ):
        space.load(shipped(Path("search_spaces/prunning.py")), Overrides())
    assert shipped(Path("spaces/pruning.py")) == Path("spaces/pruning.py")
    own = tmp_path / "search_spaces" / "pruning.py"
    own.parent.mkdir()
    own.write_text("objectives = {}")
    assert shipped(own.relative_to(tmp_path)) == own.relative_to(tmp_path)


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
