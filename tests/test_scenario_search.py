"""The whole bench of the search on a small scenario: every figure has a value."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from simulated import curve, problem

from raybench.bench import __main__ as command
from raybench.bench import scenario_search, simulated_search

PAGE = "```\n$ python -m raybench.bench search --scenario peaks --seeds 1\nold 1\n```\n"


def peaks(name: str) -> SimpleNamespace:
    """Three tasks: on `other` the best learning rate is elsewhere, `near` is nearly `plain`."""

    def of(task: str):
        factor = {"plain": 1.0, "near": 1.2, "other": 0.01}[task]
        moved = lambda params: curve({**params, "lr": params["lr"] * factor})  # noqa: E731
        return replace(problem(), name=task, curve=moved)

    return SimpleNamespace(name=name, tasks=["plain", "near", "other"], problem=of)


@pytest.fixture
def small(monkeypatch):
    """One process, small budgets, and no grid that would take longer."""
    monkeypatch.setattr(simulated_search, "scenario", peaks)
    monkeypatch.setattr(scenario_search, "scenario", peaks)
    monkeypatch.setattr(simulated_search, "FULL_TRIALS", 8)
    monkeypatch.setattr(simulated_search, "BOX", 40)
    monkeypatch.setattr(scenario_search, "NAMES", [])
    serial = lambda runs: {run: simulated_search.trace(run) for run in runs}  # noqa: E731
    monkeypatch.setattr(scenario_search, "traces", serial)
    for cached in (simulated_search._random_ends, simulated_search._places):
        cached.cache_clear()


def test_a_neighbour_ranks_configurations_alike(small):
    assert simulated_search.neighbour("peaks", "plain") == "near"
    assert simulated_search.neighbour("peaks", "near") == "plain"


def test_every_figure_is_printed_on_the_page(small, tmp_path, capsys):
    path = tmp_path / "performance.md"
    path.write_text(PAGE)
    arguments = ["search", "--scenario", "peaks", "--tasks", "plain,near", "--seeds", "1"]
    assert command.run(command.parse([*arguments, "--page", str(path)])) == 0
    block = path.read_text()
    wanted = {name for name in scenario_search.claims if not name.startswith(("digits", "cifar10"))}
    printed = {line.split()[0]: line.split()[1] for line in block.splitlines()[2:-2]}
    assert wanted <= printed.keys()
    assert all(math.isfinite(float(value.replace(",", ""))) for value in printed.values())
    assert {f"share_{name}" for name in ("random", "ours", "tpe", "nsga2", "moasha")} <= set(
        printed
    )
