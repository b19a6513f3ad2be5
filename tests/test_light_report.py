"""The report reads tables: it starts without torch, Ray and Optuna, and without Plotly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raybench import report
from raybench.experiment import flatten, preset, tables
from raybench.reports import family
from raybench.results.store import Store

ROOT = Path(__file__).parent.parent
FAMILIES = (
    "monarch",
    "pipeline",
    "pruning",
    "strategies",
    "super_model",
    "switch_vit",
    "which_pays",
)
HEAVY = {"torch", "ray", "optuna", "timm", "torchvision", "plotly", "sklearn"}
ONLY_OF_A_PAGE = {"optuna", "plotly", "sklearn"}
PROGRAM = """
import sys
from pathlib import Path
from raybench.report import Report, run
page, *folders = sys.argv[1:]
for folder in folders:
    html = Path(folder) / "page.html" if page == "page" else None
    assert run(Report(folders=(str(Path(folder)),), html=html)) == 0, folder
print(sorted({name.partition(".")[0] for name in sys.modules}))
"""


def fresh(program: str, *arguments: str) -> str:
    """The last line that the program prints in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def sweep(folder: Path, name: str) -> Path:
    """A sweep of the family with one failed trial, and one complete without its metrics."""
    module = preset.load(name)
    about = {"family": name, "sweep": name, "objectives": module.objectives}
    store = Store(folder / name, *tables.schemas(about))
    row = flatten(module.base)
    for number, status in enumerate(("FAILED", "RUNNING")):
        identity = {"sweep": name, "trial": f"{name}-{number}", "number": number}
        store.put_epoch({**identity, "epoch": 1, "accuracy": 0.5})
        store.put_trial({**identity, **row, "status": status, "stop_reason": "diverged"})
    store.close()
    return folder / name


@pytest.mark.workers
def test_a_report_of_every_family_loads_no_heavy_library(memory_path):
    folders = [str(sweep(memory_path, name)) for name in FAMILIES]
    loaded = fresh(PROGRAM, "no page", *folders)
    assert "pandas" in loaded
    assert not {name for name in HEAVY if f"'{name}'" in loaded}
    loaded = fresh(PROGRAM, "page", *folders)
    assert {name for name in HEAVY if f"'{name}'" in loaded} <= ONLY_OF_A_PAGE


@pytest.mark.workers
def test_import_raybench_loads_no_heavy_library():
    assert fresh(f"import sys, raybench; print({HEAVY!r} & set(sys.modules))") == "set()"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trainer_has_the_table_that_the_report_shows(name):
    assert preset.load(name).table is family.table(name)


def test_a_family_of_your_own_has_the_table_of_its_module(memory_path, monkeypatch):
    (memory_path / "my_family.py").write_text("def table(trials, epochs, threshold): return 7\n")
    (memory_path / "bare.py").write_text("")
    package = memory_path / "mine"
    package.mkdir()
    for path in memory_path.glob("*.py"):
        path.rename(package / path.name)
    monkeypatch.syspath_prepend(memory_path)
    table = family.table("mine.my_family")
    assert table is not None
    assert table(None, None, 0.5) == 7
    assert family.table("mine.bare") is None
    assert family.table("mine.missing") is None
    assert family.table("no_such_family") is None


def test_a_module_that_misses_a_package_says_so(memory_path, monkeypatch):
    (memory_path / "half").mkdir()
    (memory_path / "half" / "family.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(memory_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        family.table("half.family")


def test_a_results_folder_lists_its_sweeps(memory_path, capsys):
    for name in ("pruning", "monarch"):
        sweep(memory_path, name)
    (memory_path / "notes").mkdir()
    assert report.run(report.Report(folders=(str(memory_path),))) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert cells == [
        ["monarch", "monarch", "2", "0", "1", "–"],
        ["pruning", "pruning", "2", "0", "1", "–"],
    ]
    assert report.run(report.Report(folders=(str(memory_path / "notes"),))) == 2
    assert "holds no results" in capsys.readouterr().err
