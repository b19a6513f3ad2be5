"""How many trials fit into nodes, how many slots to ask for, how long to wait: without Ray."""

from __future__ import annotations

import sys

import pytest

from raybench.cluster import fit
from raybench.cluster.asking import MOST, Asking
from raybench.cluster.fit import Needs, Node
from raybench.cluster.room import HOPELESS_S, LOOK_S, NOTICE_S, Room


def node(cpus: float, gpus: float = 0.0) -> Node:
    return Node(cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(
    ("nodes", "needs", "slots"),
    [
        ([node(4)], Needs(), 4),
        ([node(0)], Needs(), 0),
        ([], Needs(), 0),
        ([node(0.5), node(0.5)], Needs(), 0),  # totals would say 1
        ([node(8), node(1, 4)], Needs(gpus=1), 1),  # totals would say 4
        ([node(4, 1), node(4, 1)], Needs(gpus=0.5), 4),
        ([node(1, 1), node(7)], Needs(gpus=0.5), 1),  # totals would say 2
        ([node(8, 2)], Needs(gpus=0.6), 2),  # totals would say 3: no trial spans two GPUs
        ([node(8, 2)], Needs(gpus=1 / 3), 6),
        ([node(8, 1)], Needs(gpus=0.3333), 3),
        ([node(8, 3), node(8, 3)], Needs(gpus=2), 2),  # totals would say 3
        ([node(3), node(3)], Needs(parts=2), 3),  # one group is on both nodes
        ([node(3), node(3)], Needs(parts=2, together=True), 2),
        ([node(3), node(3)], Needs(parts=4, together=True), 0),
        ([node(4, 2), node(4, 1)], Needs(parts=2, gpus=1), 1),
        ([node(4, 2), node(4, 1)], Needs(parts=3, gpus=1), 1),
        ([node(4, 2), node(4, 1)], Needs(parts=3, gpus=1, together=True), 0),
    ],
)
def test_slots_are_counted_by_node(nodes: list[Node], needs: Needs, slots: int) -> None:
    assert fit.slots(nodes, needs) == slots


def test_bundles_hold_what_a_trial_takes() -> None:
    assert Needs(parts=2).bundles(2) == [{"CPU": 1.0}] * 4
    assert Needs(parts=3, gpus=0.3, together=True).bundles() == [{"CPU": 3.0, "GPU": 0.9}]


@pytest.mark.parametrize(
    ("nodes", "types", "gpus"),
    [
        ([node(2)], None, 0),
        ([node(2), node(1, 1)], None, 1),
        ([node(0)], [node(2)], 0),
        ([node(0)], [node(2, 1)], 1),
        ([node(0)], [node(2), node(2, 1)], 0),  # a GPU costs more than a CPU: nobody asked for it
        ([node(2)], [node(2, 1)], 0),
    ],
)
def test_the_default_takes_gpus_that_are_there(nodes, types, gpus) -> None:
    assert fit.default_gpus(nodes, types) == gpus


def test_nodes_without_gpus_are_told_when_they_stay_idle() -> None:
    nodes = [node(2), node(4, 1), node(0)]
    assert fit.idle_nodes(nodes, Needs(gpus=1)) == [node(2)]
    assert fit.idle_nodes(nodes, Needs()) == []


@pytest.mark.parametrize(
    ("needs", "whole", "said"),
    [
        (Needs(parts=2, gpus=0.5), True, "2 workers of 0.5 GPU each"),
        (Needs(gpus=1.5), False, "--gpus is 1.5"),
    ],
)
def test_gpus_that_no_cluster_can_give_are_refused(needs: Needs, whole: bool, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit.require_sensible(needs, whole_gpus=whole)
    fit.require_sensible(Needs(parts=2, gpus=1), whole_gpus=True)
    fit.require_sensible(Needs(gpus=0.5), whole_gpus=False)


class Autoscaler:
    """Starts up to `most` slots; like Ray's second one, it refuses more as a whole."""

    def __init__(self, most: int) -> None:
        self.most, self.slots = most, 0

    def asked(self, slots: int) -> bool:
        if slots > self.most:
            return True
        self.slots = max(self.slots, slots)
        return False


@pytest.mark.parametrize("most", [1, 2, 6, 7, 64, 999])
@pytest.mark.parametrize("wanted", [1, 5, 100, 10**6])
def test_asking_finds_all_that_the_autoscaler_may_start(most: int, wanted: int) -> None:
    asking, autoscaler = Asking(), Autoscaler(most)
    for _ in range(25):
        slots = asking.next(wanted, held=autoscaler.slots)
        assert slots <= min(wanted, MOST)
        asking.answered(autoscaler.asked(slots))
    assert autoscaler.slots == min(most, wanted)
    assert not asking.hopeless
    assert asking.next(0, held=autoscaler.slots) == 0  # the sweep is over


def test_asking_says_when_not_even_one_trial_will_have_room() -> None:
    asking = Asking()
    for _ in range(3):
        assert asking.next(8, held=0) > 0
        asking.answered(True)
    assert asking.hopeless
    asking.next(8, held=1)  # a node that somebody has started
    assert not asking.hopeless


class Cluster:
    """Nodes and a clock, moved by hand."""

    def __init__(self, *nodes: Node) -> None:
        self.nodes, self.now = list(nodes), 0.0

    def room(self, needs: Needs, *, most=None, wait_s: float = 60.0, types=None) -> Room:
        look = lambda: list(self.nodes)  # noqa: E731
        return Room(
            needs, nodes=look, most=most, wait_s=wait_s, types=types, clock=lambda: self.now
        )

    def later(self, seconds: float) -> None:
        self.now += seconds


def test_slots_follow_the_nodes_up_to_the_cap() -> None:
    cluster = Cluster(node(2))
    room = cluster.room(Needs(), most=5)
    assert room.slots == 2
    cluster.nodes.append(node(2))
    room.look()
    assert room.slots == 2  # it has looked just now
    cluster.later(LOOK_S)
    room.look()
    assert room.slots == 4
    cluster.nodes.append(node(2))
    cluster.later(LOOK_S)
    room.look()
    assert room.slots == 5
    cluster.nodes.clear()
    cluster.later(LOOK_S)
    room.look()
    assert room.slots == 0
    assert room.wanted(100) == 5
    assert room.wanted(3) == 3


def test_a_trial_that_no_node_can_hold_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"does not fit .*: it needs 3 workers of 1 CPU each; the"):
        Cluster(node(2)).room(Needs(parts=3), wait_s=0)
    types = [node(2), node(4)]
    with pytest.raises(ValueError, match="the largest node that may come holds 4 CPUs"):
        Cluster(node(0)).room(Needs(parts=5, together=True, kind="stage"), types=types)
    assert Cluster(node(0)).room(Needs(parts=6), types=types).slots == 0  # both will come
    with pytest.raises(ValueError, match=r"needs 1 CPU and 1 GPU; .*--gpus 0"):
        Cluster(node(2)).room(Needs(gpus=1), types=types)


def test_the_wait_ends_when_there_is_room_or_at_its_deadline() -> None:
    cluster = Cluster(node(0))
    room = cluster.room(Needs(), wait_s=60)
    assert room.wait(True) is None
    cluster.later(NOTICE_S + 1)
    assert room.waits
    assert "at most 60 s: a trial needs 1 CPU; the one node holds 0 CPUs" in room.waiting
    assert room.wait(False) is None
    assert not room.waits
    assert room.wait(True) is None  # the clock begins anew
    cluster.later(59)
    assert room.wait(True) is None
    cluster.later(2)
    refused = room.wait(True)
    assert isinstance(refused, ValueError)
    assert "\n" not in str(refused)
    assert "after 61 s: it needs 1 CPU; the one node holds 0 CPUs" in str(refused)


def test_a_sweep_that_has_begun_can_be_resumed_after_the_wait() -> None:
    cluster = Cluster(node(1))
    room = cluster.room(Needs(), wait_s=60)
    cluster.nodes.clear()
    cluster.later(LOOK_S)
    room.look()
    assert room.wait(True, hopeless=True) is None
    cluster.later(HOPELESS_S + 1)
    assert room.wait(True) is None
    assert isinstance(room.wait(True, hopeless=True), RuntimeError)


def test_the_arithmetic_needs_no_ray() -> None:
    """These files are imported before Ray is, and by tests that start none."""
    for module in (fit, sys.modules[Asking.__module__], sys.modules[Room.__module__]):
        assert not any(getattr(value, "__name__", "") == "ray" for value in vars(module).values())
