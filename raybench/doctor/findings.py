"""Problems of the nodes, with advice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raybench.doctor.facts import Facts
from raybench.doctor.link import Link
from raybench.hardware.versions import DECISIVE, differences

LEAST_MEMORY = 2e9  # bytes; a training process takes about 1e9
LEAST_DISK = 5e9
MOST_SKEW_S = 2.0
MOST_LATENCY_S = 0.005
LEAST_BYTES_PER_S = 100e6
OTHERS = ("torchvision", "timm")


@dataclass(frozen=True, kw_only=True)
class Node:
    """The results of the checks of one node."""

    name: str
    facts: Facts | None
    """None if it did not answer."""
    error: str = ""
    """Why it did not answer."""
    skew_s: float | None = None
    """How far its clock is ahead of the one here; meaningless below `skew_error_s`."""
    skew_error_s: float = 0.0
    link: Link | None = None
    """The connection to the next node."""
    link_error: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem in one line; a `serious` one hinders a sweep."""

    serious: bool
    text: str

    def __str__(self) -> str:
        return f"{'wrong' if self.serious else 'note'}: {self.text}"


def findings(nodes: Sequence[Node], ours: Mapping[str, str], data: str) -> list[Finding]:
    """All findings about the nodes, the serious ones first.

    Args:
        ours: the versions of the process that starts sweeps.
        data: the data set that the nodes need.
    """
    found: list[Finding] = []

    def wrong(text: str) -> None:
        found.append(Finding(serious=True, text=text))

    def note(text: str) -> None:
        found.append(Finding(serious=False, text=text))

    examined = [(node.name, node.facts) for node in nodes if node.facts is not None]
    usual_data = Counter(facts.data for _, facts in examined if facts.data).most_common(1)
    systems = sorted({facts.system for _, facts in examined})
    for node in nodes:
        if node.facts is None:
            wrong(f"{node.name} does not answer: {node.error}")
    for name, facts in examined:
        if differs := differences(facts.versions, ours, DECISIVE):
            wrong(f"{name} has {differs}; install the same versions on every node")
        if differs := differences(facts.versions, ours, OTHERS):
            note(f"{name} has {differs}; models may differ")
        if facts.data is None:
            wrong(
                f"{name} has no data set {data}; put it there and set RAYBENCH_DATA to the folder "
                "above it, on every node"
            )
        elif facts.data == "download":
            note(f"{name} will download {data} at its first trial; RAYBENCH_DATA is not set there")
        elif (facts.data,) != usual_data[0][:1]:
            wrong(f"{name} has other files of {data} than the other nodes: {facts.data}")
        if 0 <= facts.memory_free < LEAST_MEMORY:
            wrong(f"{name} has {facts.memory_free / 1e9:.1f} GB of memory left; a trial needs 1 GB")
        if facts.disk_free < LEAST_DISK:
            wrong(
                f"{name} has {facts.disk_free / 1e9:.1f} GB of disk left in the cache or in /tmp; "
                "make room, or set RAYBENCH_CACHE and RAY_TMPDIR to another disk"
            )
        if facts.gpus and not facts.gpus_seen:
            wrong(
                f"{name} has a GPU that torch does not see (driver {facts.driver}): install a "
                "CUDA build of torch that this driver supports"
            )
        if facts.gloo_interface and facts.gloo_interface not in facts.interfaces:
            wrong(
                f"{name} has no interface GLOO_SOCKET_IFNAME={facts.gloo_interface}, but "
                f"{', '.join(facts.interfaces)}"
            )
    for node in nodes:
        if node.skew_s is not None and abs(node.skew_s) - node.skew_error_s > MOST_SKEW_S:
            wrong(
                f"the clock of {node.name} is {node.skew_s:+.0f} s off; start chrony or ntpd there"
            )
        if node.link_error:
            wrong(
                f"{node.name} does not reach the next node ({node.link_error}): open all TCP ports "
                "between the nodes"
            )
        elif node.link is not None:
            slow = node.link.latency_s > MOST_LATENCY_S
            if slow or node.link.bytes_per_s < LEAST_BYTES_PER_S:
                pace = f"{node.link.bytes_per_s / 1e6:.0f} MB/s, {1e3 * node.link.latency_s:.1f} ms"
                note(
                    f"{node.name} has a slow connection to the next node ({pace}); this slows down "
                    "trials with --workers on several nodes, not trials with one worker"
                )
    if len(systems) > 1:
        note(f"the nodes differ in their system: {', '.join(systems)}")
    return sorted(found, key=lambda finding: not finding.serious)
