"""python -m raybench.doctor: is this machine, or every node of a cluster, fit for a sweep?"""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
from dataclasses import dataclass, replace

import pandas as pd

from raybench.arguments.parse import parse as command_line
from raybench.arguments.paths import settled
from raybench.doctor import destination
from raybench.doctor.facts import facts
from raybench.doctor.findings import Finding, Node, findings
from raybench.hardware.versions import versions
from raybench.reports.text import as_text


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Checks this machine, or every node of the cluster at RAY_ADDRESS, in under 30 s.

    Examples:

      python -m raybench.doctor
      python -m raybench.doctor --data cifar10 --results s3://bucket/runs
      python -m raybench.submit doctor --data cifar10

    It checks versions, data, clocks, memory, disk and GPUs, measures the network between the
    nodes, and tests the results folder. The exit code is 1 if something is wrong.
    """

    data: str = "digits"
    """The data set or folder that every node must have."""
    results: str = "results"
    """The results folder or address to test."""


def run(arguments: list[str]) -> int:
    """The exit code: 0, 1 something is wrong, 2 usage."""
    options = parse(arguments)
    began = time.monotonic()
    try:
        nodes = _nodes(options.data)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"raybench.doctor: {error}", file=sys.stderr)
        return 2
    found = findings(nodes, versions(), options.data)
    if trouble := destination.trouble(options.results):
        text = f"results cannot be written to {options.results}: {trouble}"
        found.insert(0, Finding(serious=True, text=text))
    print(as_text(f"{len(nodes)} node(s), {time.monotonic() - began:.0f} s", table(nodes)), end="")
    for finding in found:
        print(textwrap.fill(str(finding), 80, subsequent_indent="  ", break_on_hyphens=False))
    serious = sum(finding.serious for finding in found)
    print("all is well" if not found else f"{serious} wrong, {len(found) - serious} to note")
    return 1 if serious else 0


def _nodes(data: str) -> list[Node]:
    if not os.environ.get("RAY_ADDRESS"):
        here = facts(data)
        return [Node(name="here", facts=here)]
    from raybench.cluster.probes import examine
    from raybench.cluster.session import session

    with session(compare=False):
        return examine(data)


def table(nodes: list[Node]) -> pd.DataFrame:
    """One row per node, at most 80 characters wide."""
    rows = []
    for node in nodes:
        has, link = node.facts, node.link
        rows.append(
            {
                "node": node.name,
                "CPUs": has and has.cpus,
                "RAM GB": has and round(has.memory_free / 1e9, 1),
                "disk GB": has and round(has.disk_free / 1e9, 1),
                "clock s": node.skew_s and round(node.skew_s, 2),
                "ms": link and round(1e3 * link.latency_s, 2),
                "MB/s": link and round(link.bytes_per_s / 1e6),
                "GPUs": has and _gpus(has.gpus),
            }
        )
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def _gpus(names: tuple[str, ...]) -> str:
    """The GPUs as text, such as `8× H100`."""
    if not names:
        return "none"
    short = names[0].removeprefix("NVIDIA ").removeprefix("Tesla ").removeprefix("GeForce ")
    model = re.match(r"(RTX )?\S+", short)
    return f"{len(names)}× {model[0] if model else short}"


def parse(arguments: list[str]) -> Doctor:
    """The command line. Raises SystemExit."""
    options = command_line(Doctor, arguments, "doctor")
    return replace(options, results=settled(options.results))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
