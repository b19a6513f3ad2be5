"""python -m raybench.bench NAME [--json]"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from raybench import bench
from raybench.arguments.nearest import nearest
from raybench.arguments.parse import parse as command_line
from raybench.arguments.paths import require_file
from raybench.bench import page as pages
from raybench.training import measure

HIDDEN = {
    "__main__",
    "cluster_parts",
    "gpu_parts",
    "grids",
    "machines",
    "page",
    "photos",
    "real_space",
    "staged_space",
    "steady",
    "steady_space",
    "scale_space",
    "scenario_search",
    "search_figures",
    "search_peers",
    "simulated_search",
    "subject",
    "timed",
    "trivial",
    "trivial_space",
    "victim",
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measures both sides of a claim, interleaved, and prints medians and ratios.

    Examples:

      python -m raybench.bench input
      python -m raybench.bench step --json
      python -m raybench.bench step --page docs/performance.md
      python -m raybench.bench gpu --part a --minutes 9
      python -m raybench.bench cluster --part works --json
      python -m raybench.bench search --scenario lcbench --tasks 3945,7593 --seeds 5
    """

    name: Annotated[str, tyro.conf.Positional]
    """input, step, overhead, concurrency, switch, monarch, strategies, pipeline, restart,
    compress, search, real_search, scale, chaos, cluster, verdict, speed or gpu; with --page
    also all."""
    scenario: str | None = None
    """For `search`: simulates it on a folder of curves under $RAYBENCH_YAHPO, on digits or cifar10
    (recorded grids), or on the folder of a sweep."""
    tasks: str = "all"
    """Tasks of the scenario, separated by commas."""
    seeds: int = 20
    """Number of searches of each task of the scenario."""
    json: bool = False
    """Prints a single JSON object on standard output."""
    page: Path | None = None
    """A page of figures, such as docs/performance.md, in which the bench's block is replaced."""
    part: str | None = None
    """For the bench gpu: a steps (the default), b accuracy, c references, d compare, e two
    processes; page prints --page from the measured files. For the bench cluster: works, losses,
    joins, churn, large, efficiency, autoscaled, s3, upload; all by default."""
    minutes: float = 9.0
    """For the bench gpu: time limit; a subject that would exceed it is not started."""


def parse(arguments: list[str]) -> Bench:
    """The command line. Raises SystemExit."""
    return command_line(Bench, arguments, "bench")


def run(options: Bench) -> int:
    """Runs a bench: a module with `measure() -> dict`, and `claims`, the target of each figure."""
    try:
        if options.scenario is not None and options.name != "search":
            raise ValueError("--scenario belongs to the bench search")
        names = [_titled(options)]
        if options.page is not None and options.name != "gpu":
            require_file(options.page)
            there = pages.benches(options.page)
            if options.name == "all":
                names = there
            elif names == ["cluster"]:  # a block for each part
                names = [title for title in there if title.startswith("cluster ")]
            if not names or names[0] not in there:
                raise ValueError(f"{options.page} has no block of the bench {options.name}")
        every = [m.name for m in pkgutil.iter_modules(bench.__path__) if m.name not in HIDDEN]
        for title in names:
            name, _, rest = title.partition(" --")
            kind, _, value = rest.partition(" ")
            if name not in every:
                raise ValueError(f"no bench {name!r}; {nearest(name, every)}")
            scenario = value if kind == "scenario" else None
            part = value if kind == "part" else options.part
            _measured(replace(options, name=name, scenario=scenario, part=part))
    except (ValueError, OSError) as error:
        print(f"raybench.bench: {error}", file=sys.stderr)
        return 2
    return 0


def _titled(options: Bench) -> str:
    """The name of the bench as in its block on a page."""
    if options.name == "cluster" and options.part:
        return f"{options.name} --part {options.part}"
    return options.name + (f" --scenario {options.scenario}" if options.scenario else "")


def _measured(options: Bench) -> None:
    """Runs one bench and prints its figures."""
    name = options.name
    load = os.getloadavg()[0] / max(1, int(measure.machine()["cpu_count"]))
    if load > 0.5:
        print(
            f"raybench.bench: the load is {load:.1f} per core, so figures may be unreliable",
            file=sys.stderr,
        )
    torch.set_num_threads(1)
    module = importlib.import_module(f"raybench.bench.{name}")
    if name == "gpu":  # it prints its page itself, from the files of all parts
        figures = module.measure(options.minutes, options.part or "a", printed=options.page)
    elif name == "cluster":
        figures = module.measure(options.part)
    elif options.scenario is not None:
        module = importlib.import_module("raybench.bench.scenario_search")
        figures = module.measure(options.scenario, options.tasks, options.seeds)
    else:
        figures = module.measure()
    lines = pages.lines(figures, module.claims)
    if options.page is not None and name != "gpu":
        pages.printed(options.page, _titled(options), lines, load)
    if options.json:
        print(json.dumps({**figures, "load_before": round(load, 2), **measure.machine()}))
    else:
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    sys.exit(run(parse(sys.argv[1:])))
