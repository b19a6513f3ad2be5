"""Imports run one way, between files and between rooms, and the light parts stay light."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("raybench/**/*.py"), *ROOT.glob("trainers/**/*.py")])
READ = sorted([*FILES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("search_spaces/**/*.py")])

# From the bottom up. A room may import from those below it and from those beside it in its line;
# no two rooms import from each other.
ROOMS = [
    ["raybench.hardware"],
    ["raybench.arguments"],
    ["raybench.results"],
    ["raybench.techniques"],
    ["raybench.experiment"],
    ["raybench.models", "raybench.data"],
    ["raybench.parallel"],
    ["raybench.artefact"],
    ["raybench.training"],
    ["raybench.search", "raybench.reports"],
    ["raybench.verdict"],
    ["raybench.doctor"],
    ["raybench.cluster"],
    ["trainers"],
    ["raybench.bench"],
]
COMMANDS_LEVEL = ROOMS.index(["trainers"])  # the files beside the rooms, and trainers
FILES_BESIDE_THE_ROOMS = 8  # and `__init__.py`

TRAINERS_BY_NAME = {"raybench.experiment.preset"}
"""Looks a family up by its name, and so imports from above, in a function."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}
ENTRIES = {name for name in MODULES if name.endswith(".__main__")}
"""`python -m raybench.x` begins there; nothing imports them, and they import what they run."""


def imported(name: str) -> set[str]:
    """Every module that the file imports anywhere in it, functions included."""
    path, targets = MODULES[name], set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, node.module] if node.module else above)
            base = base if node.level else str(node.module)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                targets.add(inner if inner in MODULES else base)
    return targets


def ours(name: str) -> set[str]:
    inner = {n for n in imported(name) if n.split(".")[0] in ("raybench", "trainers")}
    return inner - {"raybench"}  # the package itself holds no code


def room(name: str) -> str:
    """`raybench.data`, `trainers`; of a file beside the rooms its own name."""
    parts = name.split(".")
    return parts[0] if parts[0] == "trainers" else ".".join(parts[:2])


def is_command(name: str) -> bool:
    return name == room(name) and name != "trainers" and MODULES[name].name != "__init__.py"


def level(name: str) -> int:
    if is_command(name):
        return COMMANDS_LEVEL
    levels = [number for number, rooms in enumerate(ROOMS) if room(name) in rooms]
    assert levels, f"{name} lies in no room of {Path(__file__).name}"
    return levels[0]


def fresh(program: str) -> str:
    """What the program prints in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_walk_sees_the_whole_house():
    assert len(MODULES) > 100
    assert "raybench.experiment" in imported("raybench.training.loop")
    assert "raybench.reports.tables.pruning" in imported("trainers.pruning")
    assert "trainers" in imported("raybench.experiment.preset")  # in a function


@pytest.mark.parametrize("name", sorted({*MODULES} - {"raybench"} - ENTRIES))
def test_imports_point_downward(name):
    allowed = {"trainers"} if name in TRAINERS_BY_NAME else set()
    up = {other for other in ours(name) - allowed if level(other) > level(name)}
    assert not up


def test_imports_of_files_have_no_cycle():
    # `raybench.x` is imported by importing `raybench.x.y` as well, but never needs it back.
    graph = {name: ours(name) - {name} for name in MODULES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_imports_of_rooms_have_no_cycle():
    graph: dict[str, set[str]] = {}
    for name in {*MODULES} - {"raybench"} - ENTRIES - TRAINERS_BY_NAME:
        graph.setdefault(room(name), set()).update(room(o) for o in ours(name))
    without_self = {name: others - {name} for name, others in graph.items()}
    assert list(graphlib.TopologicalSorter(without_self).static_order())


def test_every_room_has_its_place_and_says_what_it_is_for():
    rooms = {room(name) for name in MODULES if name != "raybench" and not is_command(name)}
    assert rooms == {name for line in ROOMS for name in line}
    for name in rooms:
        assert ast.get_docstring(ast.parse(MODULES[name].read_text())), f"{name} says nothing"


def test_few_files_lie_beside_the_rooms():
    beside = [path.name for path in ROOT.glob("raybench/*.py") if path.name != "__init__.py"]
    assert len(beside) <= FILES_BESIDE_THE_ROOMS, beside


@pytest.mark.parametrize(
    "name", [n for n in MODULES if n.startswith("raybench.techniques") and n not in ENTRIES]
)
def test_techniques_import_techniques_and_their_columns_alone(name):
    others = {other for other in ours(name) if not f"{other}.".startswith("raybench.techniques.")}
    assert others <= {"raybench.results.column"}


def test_nothing_is_imported_from_the_commands():
    for name in {*MODULES} - {"raybench"}:  # the package names their functions for notebooks
        commands = {o for o in ours(name) if is_command(o) or o in ENTRIES} - {name}
        assert not commands, f"{name} imports {commands}"


def test_only_cluster_imports_ray():
    with_ray = {n for n in MODULES for other in imported(n) if other.split(".")[0] == "ray"}
    assert with_ray
    assert all(name.startswith("raybench.cluster.") for name in with_ray), with_ray


@pytest.mark.workers
@pytest.mark.parametrize("name", ["raybench", "raybench.report", "raybench.results"])
def test_reading_loads_neither_torch_nor_ray(name):
    program = f"import sys, {name}; print({{'torch', 'ray'}} & set(sys.modules))"
    assert fresh(program) == "set()"


@pytest.mark.workers
def test_a_run_in_one_process_loads_no_library_that_it_does_not_use():
    program = """
import sys
from dataclasses import replace
from raybench.training.trainer import train
from trainers.pruning import base
import torch
torch.set_num_threads(1)
recipe = replace(base.recipe, epochs=1, batch=32, crop=1)
epochs = list(train(replace(base, image_size=8, subset=0.1, recipe=recipe)))
print([epoch.number for epoch in epochs], {'ray', 'optuna', 'torch_pruning'} & set(sys.modules))
"""
    assert fresh(program) == "[1] set()"


@pytest.mark.parametrize("path", READ, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_one_concept(path):
    """Named after what it is, and short enough to be read in one go."""
    assert len(path.read_text().splitlines()) <= 300
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}
