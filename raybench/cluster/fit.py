"""How many trials fit into the nodes of a cluster: arithmetic, without Ray.

    node      CPUs 4, GPUs 2        4 CPUs, 2 GPUs ──▶ 4 parts of 1 CPU and 0.5 GPU
    node      CPUs 3, GPUs 1        3 CPUs, 1 GPU  ──▶ 2 parts           ──▶ 6 trials of one part,
                                                                             3 of two, 3 if together

Totals of the cluster say too much: 7 CPUs and 3 GPUs would hold 6 parts on three GPUs, but also if
one node had all the GPUs and another all the CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

UNITS = 10_000  # Ray counts resources in such fractions


@dataclass(frozen=True, kw_only=True)
class Node:
    """What a node holds in all, or a node that the autoscaler could start."""

    cpus: float
    gpus: float = 0.0
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a trial takes: each part, a worker or a stage, has a CPU and its GPUs."""

    parts: int = 1
    gpus: float = 0.0
    together: bool = False
    """Whether all parts must be on one node."""
    kind: str = "worker"
    """What a part is called."""

    def __str__(self) -> str:
        each = "1 CPU" + (f" and {self.gpus:g} GPU{'s' * (self.gpus > 1)}" if self.gpus else "")
        if self.parts == 1:
            return each
        where = " on one node" if self.together else ""
        return f"{self.parts} {self.kind}s of {each} each{where}"

    def bundles(self, trials: int = 1) -> list[dict[str, float]]:
        """What a number of trials take, as Ray's autoscaler is told."""
        part = {"CPU": 1.0} | ({"GPU": self.gpus} if self.gpus else {})
        if self.together:
            whole = {name: round(self.parts * amount, 4) for name, amount in part.items()}
            return [whole] * trials
        return [part] * (self.parts * trials)


def parts_on(node: Node, gpus: float) -> int:
    """Parts that a node holds. A fraction of a GPU is of one GPU: 0.6 fits only once into each."""
    cpus = int(node.cpus)
    if not gpus:
        return cpus
    if gpus < 1:
        return min(cpus, int(node.gpus) * (UNITS // max(1, round(gpus * UNITS))))
    return min(cpus, int(node.gpus // gpus))


def slots(nodes: Sequence[Node], needs: Needs) -> int:
    """Trials that the nodes hold at once. Parts that need not be together spread over nodes."""
    held = [parts_on(node, needs.gpus) for node in nodes]
    if needs.together:
        return sum(count // needs.parts for count in held)
    return sum(held) // needs.parts


def require_sensible(needs: Needs, *, whole_gpus: bool) -> None:
    """Raises ValueError: no cluster could hold it.

    Args:
        whole_gpus: whether the parts talk through NCCL, which needs a GPU for each.
    """
    each = needs.gpus
    if whole_gpus and 0 < each < 1:
        raise ValueError(
            f"{needs.parts} {needs.kind}s of {each:g} GPU each: on GPUs they use NCCL, which needs "
            "a whole GPU for each; take --gpus 1, or --gpus 0 for gloo on CPUs"
        )
    if each > 1 and each != int(each):
        raise ValueError(
            f"--gpus is {each:g}: a worker takes a part of one GPU, such as 0.5, or whole ones"
        )


def default_gpus(nodes: Sequence[Node], types: Sequence[Node] | None) -> float:
    """GPUs of a part where the user gave no number: 1 if there are any, else 0.

    Before a cluster has room for a CPU, the types of its nodes decide: 1 if all have GPUs.
    """
    if any(node.gpus >= 1 for node in nodes):
        return 1.0
    if any(node.cpus >= 1 for node in nodes) or not types:
        return 0.0
    able = [kind for kind in types if kind.cpus >= 1]
    return 1.0 if able and all(kind.gpus >= 1 for kind in able) else 0.0


def idle_nodes(nodes: Sequence[Node], needs: Needs) -> list[Node]:
    """Nodes with CPUs that run no trial, because each part takes a GPU and they have none."""
    return [n for n in nodes if needs.gpus and n.cpus >= 1 and not parts_on(n, needs.gpus)]


def never_fits(types: Sequence[Node] | None, nodes: Sequence[Node], needs: Needs) -> bool:
    """Whether no node of the types that can still come would help.

    Args:
        types: one entry for each node that could be started; None if that is not known.
    """
    if types is None:
        return False
    return slots([*nodes, *types], needs) < 1


def holdings(nodes: Sequence[Node]) -> str:
    """What the nodes hold, in words: `2 nodes hold 6 CPUs, the largest 4 CPUs`."""
    if not nodes:
        return "there is no node that can take trials"
    if len(nodes) == 1:
        return f"the one node holds {largest(nodes)}"
    in_all = Node(cpus=sum(node.cpus for node in nodes), gpus=sum(node.gpus for node in nodes))
    return f"{len(nodes)} nodes hold {_amount(in_all)}, the largest {largest(nodes)}"


def largest(nodes: Sequence[Node]) -> str:
    """What the largest node holds, in words."""
    return _amount(max(nodes, key=lambda node: (node.gpus, node.cpus)))


def _amount(node: Node) -> str:
    cpus = f"{node.cpus:g} CPU{'s' * (node.cpus != 1)}"
    return f"{cpus} and {node.gpus:g} GPU{'s' * (node.gpus != 1)}" if node.gpus else cpus
