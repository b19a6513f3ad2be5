"""The page of figures is printed again by the benches, block by block."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from raybench.bench import __main__ as command
from raybench.bench import page

PAGE = """# Figures

```
$ python -m raybench.bench input      # one core
ratio        1
```

Between.

```
$ python -m raybench.bench step
ratio        2
```
"""


@pytest.fixture
def figures(tmp_path, monkeypatch):
    module = ModuleType("raybench.bench.step")
    module.measure, module.claims = (lambda: {"ratio": 2.5, "rounds": [1, 2]}), {"ratio": "reach 2"}
    monkeypatch.setitem(sys.modules, "raybench.bench.step", module)
    path = tmp_path / "performance.md"
    path.write_text(PAGE)
    return path


def test_a_bench_prints_its_block_again_and_leaves_the_rest(figures):
    assert command.run(command.parse(["step", "--page", str(figures)])) == 0
    before, _, block = figures.read_text().partition("$ python -m raybench.bench step\n")
    assert before == PAGE.partition("$ python -m raybench.bench step\n")[0]
    ratio, rounds, about, end, *_ = block.splitlines()
    assert ratio.split() == ["ratio", "2.5", "reach", "2"]
    assert rounds.split(maxsplit=1) == ["rounds", "[1, 2]"]
    assert about.startswith("# 20")
    assert "commit " in about
    assert end == "```"
    assert page.benches(figures) == ["input", "step"]


def test_a_bench_without_a_block_is_refused_before_it_runs(figures, capsys):
    assert command.run(command.parse(["monarch", "--page", str(figures)])) == 2
    assert "no block of the bench monarch" in capsys.readouterr().err


def test_a_bench_with_a_scenario_has_a_block_of_its_own(tmp_path):
    path = tmp_path / "performance.md"
    command_line = "$ python -m raybench.bench search --scenario lcbench --seeds 5"
    path.write_text(
        f"```\n{command_line}\nold 1\n```\n```\n$ python -m raybench.bench search\nold 2\n```\n"
    )
    assert page.benches(path) == ["search --scenario lcbench", "search"]
    path.write_text(
        path.read_text() + "\n```\n$ python -m raybench.bench cluster --part works\nold 3\n```\n"
    )
    assert page.benches(path)[2:] == ["cluster --part works"]
    page.printed(path, "cluster --part works", ["new 3"], 0.0)
    assert "new 3" in path.read_text()
    page.printed(path, "search", ["new 2"], 0.0)
    page.printed(path, "search --scenario lcbench", ["new 1"], 0.0)
    first, second = path.read_text().split("```\n```")
    assert "new 1" in first
    assert "new 2" not in first
    assert "new 2" in second
    assert "old" not in path.read_text()
