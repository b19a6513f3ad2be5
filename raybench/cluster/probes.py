"""The checks of `raybench.doctor` on every node of a cluster, each with a deadline."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybench.doctor.facts import Facts, facts
from raybench.doctor.findings import Node
from raybench.doctor.link import Link, Listener, measure

FACTS_S = 12.0
LINKS_S = 5.0  # for each of the two rounds


@ray.remote(num_cpus=0, max_restarts=0)
class Probe:
    """An actor on one node."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._listener: Listener | None = None

    def clock(self) -> float:
        return time.time()

    def facts(self, data: str) -> dict[str, Any]:
        return facts(data).plain()

    def listen(self) -> tuple[str, int]:
        self._listener = Listener(self._host)
        return self._listener.address

    def measure(self, address: tuple[str, int]) -> dict[str, float]:
        return dict(vars(measure(*address)))


def examine(data: str) -> list[Node]:
    """Checks every live node of the cluster that this process has joined.

    Args:
        data: the data set to look for.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    probes: dict[str, Any] = {}
    for node in sorted(alive, key=lambda node: node["NodeManagerAddress"]):
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = _named(node, probes)
        kind: Any = Probe
        probes[name] = kind.options(scheduling_strategy=here).remote(node["NodeManagerAddress"])
    answers = _answers({name: probe.facts.remote(data) for name, probe in probes.items()}, FACTS_S)
    nodes = {}
    for name in probes:
        answer = answers[name]
        if isinstance(answer, str):
            nodes[name] = Node(name=name, facts=None, error=answer)
        else:
            nodes[name] = Node(name=name, facts=Facts(**answer))
    reached = [name for name, node in nodes.items() if node.facts is not None]
    for name in reached:
        nodes[name] = _with_skew(nodes[name], probes[name])
    for name, link in _links({name: probes[name] for name in reached}).items():
        measured = {"link": link} if isinstance(link, Link) else {"link_error": link}
        nodes[name] = replace(nodes[name], **measured)
    for probe in probes.values():
        ray.kill(probe)
    return list(nodes.values())


def _named(node: Mapping[str, Any], taken: Mapping[str, Any]) -> str:
    """The node's address, followed by its id if several nodes are on one machine."""
    address = str(node["NodeManagerAddress"])
    return f"{address}#{node['NodeID'][:4]}" if address in taken else address


def _with_skew(node: Node, probe: Any) -> Node:
    """The best of three readings of the node's clock; its error is half the round-trip time."""
    best = node
    for _ in range(3):
        began = time.time()
        answer = _answers({node.name: probe.clock.remote()}, 2.0)[node.name]
        if isinstance(answer, str):
            break
        trip = time.time() - began
        if best.skew_s is None or trip / 2 < best.skew_error_s:
            best = replace(best, skew_s=answer - began - trip / 2, skew_error_s=trip / 2)
    return best


def _links(probes: Mapping[str, Any]) -> dict[str, Link | str]:
    """From every node to the next one in a ring; in two rounds, so that few interfere."""
    names = list(probes)
    if len(names) < 2:
        return {}
    addresses = _answers({name: probe.listen.remote() for name, probe in probes.items()}, LINKS_S)
    following = dict(zip(names, [*names[1:], names[0]], strict=True))
    links: dict[str, Link | str] = {}
    for parity in (0, 1):
        asked = {}
        for name in names[parity::2]:
            if isinstance(addresses[following[name]], str):
                links[name] = f"{following[name]} is not listening"
            else:
                asked[name] = probes[name].measure.remote(addresses[following[name]])
        for name, answer in _answers(asked, LINKS_S).items():
            links[name] = answer if isinstance(answer, str) else Link(**answer)
    return links


def _answers(asked: Mapping[str, Any], deadline_s: float) -> dict[str, Any]:
    """The answer of each call; for an error or a missing answer, a line that describes it."""
    references = list(asked.values())
    ready, _ = (
        ray.wait(references, num_returns=len(references), timeout=deadline_s) if asked else ([], [])
    )
    answers: dict[str, Any] = {}
    for name, reference in asked.items():
        if reference not in ready:
            answers[name] = f"no answer in {deadline_s:g} s"
            continue
        try:
            answers[name] = ray.get(reference)
        except (RayError, OSError) as error:
            lines = [line.strip() for line in str(error).splitlines() if "Error" in line]
            answers[name] = lines[-1][:200] if lines else type(error).__name__
    return answers
