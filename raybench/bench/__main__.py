"""python -m raybench.bench NAME [--json]"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro

from raybench import bench
from raybench.arguments.nearest import nearest
from raybench.arguments.parse import parse as command_line
from raybench.training import measure

HIDDEN = {
    "__main__",
    "photos",
    "real_space",
    "staged_space",
    "steady",
    "steady_space",
    "scale_space",
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
    """

    name: Annotated[str, tyro.conf.Positional]
    """input, step, overhead, concurrency, switch, monarch, strategies, pipeline, restart,
    compress, search, scale, chaos or verdict."""
    json: bool = False
    """Prints a single JSON object on standard output."""


def parse(arguments: list[str]) -> Bench:
    """The command line. Raises SystemExit."""
    return command_line(Bench, arguments, "bench")


def run(options: Bench) -> int:
    """Runs a bench: a module with `measure() -> dict`, and `claims`, the target of each figure."""
    names = [m.name for m in pkgutil.iter_modules(bench.__path__) if m.name not in HIDDEN]
    if options.name not in names:
        advice = nearest(options.name, names)
        print(f"raybench.bench: no bench {options.name!r}; {advice}", file=sys.stderr)
        return 2
    load = os.getloadavg()[0] / max(1, int(measure.machine()["cpu_count"]))
    if load > 0.5:
        print(
            f"raybench.bench: the load is {load:.1f} per core, so figures may be wrong",
            file=sys.stderr,
        )
    torch.set_num_threads(1)
    module = importlib.import_module(f"raybench.bench.{options.name}")
    figures = module.measure()
    if options.json:
        print(json.dumps({**figures, "load_before": round(load, 2), **measure.machine()}))
        return 0
    for name, value in figures.items():
        claim = module.claims.get(name, "")
        print(
            f"{name:32} {value:>14,.4g}   {claim}"
            if not isinstance(value, list)
            else f"{name:32} {value}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run(parse(sys.argv[1:])))
