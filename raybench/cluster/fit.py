"""How many trials fit into a cluster's nodes: arithmetic, without Ray.

    node      CPUs 4, GPUs 2        4 CPUs, 2 GPUs ──▶ 4 parts of 1 CPU and 0.5 GPU
    node      CPUs 3, GPUs 1        3 CPUs, 1 GPU  ──▶ 2 parts           ──▶ 6 trials of one part,
                                                                             3 of two, 3 if together

The cluster's totals are not enough: 7 CPUs and 3 GPUs suggest 6 parts, even if one node has all
the GPUs and another all the CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

UNITS = 10_000  # Ray counts resources in units of 1/10,000


@dataclass(frozen=True, kw_only=True)
class Node:
    """Total resources of a node, or of a node that the autoscaler could start."""

    cpus: float
    gpus: float = 0.0
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Resources of a trial: each part, a worker or a stage, has a CPU and its GPUs."""

    parts: int = 1
    gpus: float = 0.0
    together: bool = False
    """Whether all parts must be on one node."""
    kind: str = "worker"
    """The name of a part."""

    def __str__(self) -> str:
        each = "1 CPU" + (f" and {self.gpus:g} GPU{'s' * (self.gpus > 1)}" if self.gpus else "")
        if self.parts == 1:
            return each
        where = " on one node" if self.together else ""
        return f"{self.parts} {self.kind}s of {each} each{where}"

    def bundles(self, trials: int = 1) -> list[dict[str, float]]:
        """The resources of some trials, in the format of a request to Ray's autoscaler."""
        part = {"CPU": 1.0} | ({"GPU": self.gpus} if self.gpus else {})
        if self.together:
            whole = {name: round(self.parts * amount, 4) for name, amount in part.items()}
            return [whole] * trials
        return [part] * (self.parts * trials)


def parts_on(node: Node, gpus: float) -> int:
    """Parts that fit into a node. A fraction must fit into one GPU: 0.6 fits once into each."""
    cpus = int(node.cpus)
    if not gpus:
        return cpus
    if gpus < 1:
        return min(cpus, int(node.gpus) * (UNITS // max(1, round(gpus * UNITS))))
    return min(cpus, int(node.gpus // gpus))


def slots(nodes: Sequence[Node], needs: Needs) -> int:
    """Trials that fit into the nodes at once. Parts may be on several nodes unless `together`."""
    held = [parts_on(node, needs.gpus) for node in nodes]
    if needs.together:
        return sum(count // needs.parts for count in held)
    return sum(held) // needs.parts


def require_sensible(needs: Needs, *, whole_gpus: bool) -> None:
    """Raises ValueError if a trial fits into no cluster.

    Args:
        whole_gpus: whether the parts use NCCL, which needs a whole GPU for each.
    """
    each = needs.gpus
    if whole_gpus and 0 < each < 1:
        raise ValueError(
            f"{needs.parts} {needs.kind}s of {each:g} GPU each: on GPUs they use NCCL, which needs "
            "a whole GPU for each; use --gpus 1, or --gpus 0 for gloo on CPUs"
        )
    if each > 1 and each != int(each):
        raise ValueError(
            f"--gpus is {each:g}: a worker takes a part of one GPU, such as 0.5, or whole ones"
        )


def default_gpus(nodes: Sequence[Node], types: Sequence[Node] | None) -> float:
    """Default GPUs of a part: 1 if there are any, else 0.

    As long as no node has CPUs, the types of the nodes that may start decide: 1 if all have GPUs.
    """
    if any(node.gpus >= 1 for node in nodes):
        return 1.0
    if any(node.cpus >= 1 for node in nodes) or not types:
        return 0.0
    able = [kind for kind in types if kind.cpus >= 1]
    return 1.0 if able and all(kind.gpus >= 1 for kind in able) else 0.0


def idle_nodes(nodes: Sequence[Node], needs: Needs) -> list[Node]:
    """Nodes with CPUs that run no trial, because each part needs a GPU and they have none."""
    return [n for n in nodes if needs.gpus and n.cpus >= 1 and not parts_on(n, needs.gpus)]


def never_fits(types: Sequence[Node] | None, nodes: Sequence[Node], needs: Needs) -> bool:
    """Whether a trial does not fit even with every node that may still start.

    Args:
        types: one entry for each node that could be started; None if unknown.
    """
    if types is None:
        return False
    return slots([*nodes, *types], needs) < 1


def holdings(nodes: Sequence[Node]) -> str:
    """The nodes' resources as text: `2 nodes hold 6 CPUs, the largest 4 CPUs`."""
    if not nodes:
        return "there is no node that can take trials"
    if len(nodes) == 1:
        return f"the one node holds {largest(nodes)}"
    in_all = Node(cpus=sum(node.cpus for node in nodes), gpus=sum(node.gpus for node in nodes))
    return f"{len(nodes)} nodes hold {_amount(in_all)}, the largest {largest(nodes)}"


def largest(nodes: Sequence[Node]) -> str:
    """The resources of the largest node as text."""
    return _amount(max(nodes, key=lambda node: (node.gpus, node.cpus)))


def _amount(node: Node) -> str:
    cpus = f"{node.cpus:g} CPU{'s' * (node.cpus != 1)}"
    return f"{cpus} and {node.gpus:g} GPU{'s' * (node.gpus != 1)}" if node.gpus else cpus
