"""Imports run one way, and the light parts stay light."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("raybench/**/*.py"), *ROOT.glob("trainers/**/*.py")])

# From the bottom up. A module may import from its own layer and from those below it.
LAYERS = [
    ["raybench.techniques", "raybench.experiment.pipeline", "raybench.experiment.plain"],
    ["raybench.experiment"],
    [f"raybench.{name}" for name in ("models", "optim", "measure", "sources", "data", "process")]
    + ["raybench.artefact", "raybench.parallel"]
    + [f"raybench.{name}" for name in ("augment", "checkpoint", "loss_scale", "meter")],
    ["raybench.training.score", "raybench.training.trained", "raybench.artefact.onnx_graph"],
    ["raybench.training.loop", "raybench.artefact.latency"]
    + [
        f"raybench.training.{name}"
        for name in ("coverage", "first_model", "optimizers", "replicated", "runner")
    ],
    [
        "raybench.training.staged",
        "raybench.training.staged_runner",
        "raybench.reports.chunk_table",
        "raybench.reports.compression_table",
    ],
    [f"raybench.cluster.{name}" for name in ("object_store", "stage_actor", "stages")],
    ["trainers"],
    ["raybench.experiment.preset"],
    ["raybench.training.trainer"],
    ["raybench.results", "raybench.search.rungs", "raybench.search.space"],
    ["raybench.search.study"],
    ["raybench.search.sweep"],
    ["raybench.search.progress"],
    [
        "raybench.cluster",
        "raybench.reports.plots",
        "raybench.reports.attribution",
        "raybench.report",
    ],
    [f"raybench.{command}" for command in ("tune", "train", "submit", "bench", "export")],
]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imported(name: str) -> set[str]:
    """Every module that the file imports anywhere in it, functions included."""
    path, found = MODULES[name], set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, node.module] if node.module else above)
            base = base if node.level else node.module
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
    return found


def layer(name: str) -> int:
    for number, prefixes in enumerate(LAYERS):
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes):
            return number
    raise AssertionError(f"{name} stands in no layer of {Path(__file__).name}")


def ours(name: str) -> set[str]:
    found = {n for n in imported(name) if n.split(".")[0] in ("raybench", "trainers")}
    return found - {"raybench"}  # the package itself holds no code


def fresh(program: str) -> str:
    """What the program prints in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_walk_sees_the_whole_house():
    assert len(MODULES) > 30
    assert "raybench.experiment" in imported("raybench.data")
    assert "raybench.data" in imported("trainers.pruning")
    assert "trainers" in imported("raybench.experiment.preset")  # in a function


@pytest.mark.parametrize("name", [name for name in MODULES if name != "raybench"])
def test_imports_point_downward(name):
    up = {other for other in ours(name) if layer(other) > layer(name)}
    assert not up


def test_imports_have_no_cycle():
    # `raybench.x` is imported by importing `raybench.x.y` as well, but never needs it back.
    graph = {name: ours(name) - {name} for name in MODULES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("raybench.techniques")])
def test_techniques_import_techniques_alone(name):
    assert all(other.startswith("raybench.techniques") for other in ours(name))


def test_nothing_is_imported_from_the_commands():
    commands = LAYERS[-1]
    for name in MODULES:
        for other in ours(name):
            command = next((c for c in commands if f"{other}.".startswith(f"{c}.")), None)
            assert command is None or name.startswith(command), f"{name} imports {other}"


def test_only_cluster_imports_ray():
    with_ray = {n for n in MODULES for other in imported(n) if other.split(".")[0] == "ray"}
    assert with_ray
    assert all(name.startswith("raybench.cluster.") for name in with_ray), with_ray


@pytest.mark.workers
def test_import_raybench_loads_neither_torch_nor_ray():
    program = "import sys, raybench; print({'torch', 'ray'} & set(sys.modules))"
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


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_is_one_concept(path):
    """Named after what it is, and short enough to be read in one go."""
    assert len(path.read_text().splitlines()) <= 300
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}
