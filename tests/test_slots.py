"""What a sweep does as the room for its trials changes: Tune's side of it, without a cluster."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RpcError
from ray.tune.search import Searcher
from small_sweep import CONDITIONAL, ONE, PLAIN
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.cluster import demand, live_nodes
from raybench.cluster.demand import ANSWER_S, Demand
from raybench.cluster.fit import Needs, Node
from raybench.cluster.room import LOOK_S, NOTICE_S, Room
from raybench.cluster.scheduler import Heartbeat
from raybench.cluster.searcher import SweepSearcher
from raybench.cluster.trial import LEAVING, LostError, MovedError
from raybench.search.progress import Progress
from raybench.search.sweep import Sweep


class Stage:
    """A sweep, its searcher and its heartbeat, with nodes and a clock moved by hand."""

    def __init__(self, sweep: Sweep, cpus: int, wait_s: float = 60.0) -> None:
        self.now, self.nodes = 0.0, [Node(cpus=cpus)]
        self.sweep, self.said, self.released = sweep, [], 0
        clock = lambda: self.now  # noqa: E731
        self.room = Room(Needs(), nodes=lambda: self.nodes, most=None, wait_s=wait_s, clock=clock)
        self.demand = Demand(Needs(), here=True, clock=clock)
        self.searcher = SweepSearcher(sweep, self.room, threads=1, say=self.said.append)
        self.progress = Progress(sweep)
        self.progress.say = self.said.append  # type: ignore[method-assign]
        self.resized: list[int] = []
        self.heartbeat = Heartbeat(self.searcher, self.progress, self.demand, self.resized.append)
        self.searcher.actors = SimpleNamespace(begun=True, release_idle=self._release)  # type: ignore[assignment]
        self._given = 0

    def _release(self) -> None:
        self.released += 1

    def suggest(self) -> Any:
        self._given += 1
        return self.searcher.suggest(str(self._given))

    def fill(self) -> Any:
        """Takes trials until there is none; what Tune gets then."""
        while isinstance(given := self.suggest(), dict):
            assert given["experiment"]
        return given

    def beat(self, *, later: float = LOOK_S, cpus: int | None = None) -> None:
        self.now += later
        if cpus is not None:
            self.nodes = [Node(cpus=cpus)] if cpus else []
        self.heartbeat.on_step_end(0, [])

    def end(self, *numbers: int) -> None:
        for trial_id in [i for i, task in self.searcher.tasks.items() if task.number in numbers]:
            self.sweep.finish(self.searcher.tasks[trial_id].number, "FAILED", "as wanted")
            self.searcher.on_trial_complete(trial_id)


@pytest.fixture
def stage(load, tmp_path):
    sweep = Sweep(tmp_path / "s", load(ONE, CONDITIONAL), trials=6, overrides=PLAIN)
    yield Stage(sweep, cpus=2)
    sweep.close()


def test_trials_are_given_out_while_there_is_room(stage: Stage) -> None:
    assert stage.fill() is None
    assert len(stage.searcher.tasks) == 2
    stage.beat(cpus=4)
    assert stage.fill() is None
    assert len(stage.searcher.tasks) == 4
    stage.beat(cpus=1)
    stage.end(0, 1)
    assert stage.fill() is None  # two still run where one has room
    assert len(stage.searcher.tasks) == 2
    stage.end(2, 3)
    assert stage.fill() is None
    assert len(stage.searcher.tasks) == 1
    assert stage.resized == [4, 1]


def test_without_any_room_the_sweep_is_not_over(stage: Stage) -> None:
    stage.beat(cpus=0)
    assert stage.fill() is None
    assert not stage.searcher.tasks
    stage.beat(cpus=9)
    assert stage.fill() is None
    assert len(stage.searcher.tasks) == 6
    stage.end(*range(6))
    stage.beat(cpus=0)
    assert stage.fill() == Searcher.FINISHED  # nothing is left to wait for


def test_the_wait_is_told_and_ends_with_one_line(stage: Stage) -> None:
    stage.beat(cpus=0)
    stage.fill()
    stage.beat(later=0.1)
    assert not stage.said  # a moment is no wait
    heard = []
    stage.heartbeat.heard = lambda: heard.append(stage.now)  # the watchdog's
    stage.beat(later=NOTICE_S + 1)
    assert len(stage.said) == 1
    assert "waiting for room, at most 60 s: a trial needs 1 CPU; there is no" in stage.said[0]
    assert "waiting for room: a trial needs 1 CPU" in stage.progress.line()
    assert heard
    stage.beat(later=61)
    assert len(stage.said) == 1
    assert stage.heartbeat.stop_all()
    assert re.match(r"a trial does not fit .* after 64 s", str(stage.searcher.failure))
    assert stage.fill() == Searcher.FINISHED


def test_trials_that_find_no_place_wait_as_well(stage: Stage) -> None:
    """Others may use all that the nodes hold."""
    stage.fill()
    stage.searcher.actors.begun = False  # type: ignore[union-attr,misc]
    for _ in range(2):
        stage.beat(later=NOTICE_S + 1)
    assert "the one node holds 2 CPUs, which others use" in stage.progress.waiting
    stage.searcher.actors.begun = True  # type: ignore[union-attr,misc]
    stage.beat()
    assert not stage.progress.waiting


def test_idle_actors_end_where_they_would_keep_a_node_up(stage: Stage) -> None:
    stage.fill()
    stage.end(0)
    stage.beat()
    assert stage.released == 0  # the next trial will take the actor
    stage.fill()
    stage.beat(cpus=1)
    assert stage.released == 1  # two run where one has room
    stage.beat(cpus=9)
    assert stage.released == 1
    stage.fill()
    stage.end(2)
    stage.fill()
    stage.beat()
    assert stage.released == 2  # no trial is left


def test_a_move_is_no_loss_however_often(stage: Stage) -> None:
    stage.fill()
    for _ in range(5):
        trial_id = next(i for i, task in stage.searcher.tasks.items() if task.number == 1)
        stage.searcher.errors[trial_id] = MovedError("with\nRay's traceback")
        stage.searcher.on_trial_complete(trial_id, error=True)
        assert isinstance(stage.suggest(), dict)
    row = stage.sweep.store.trials[1]
    assert (row["status"], row["retries"], row["last_failure"]) == ("RUNNING", 0, LEAVING)
    trial_id = next(i for i, task in stage.searcher.tasks.items() if task.number == 1)
    stage.searcher.errors[trial_id] = LostError("its node was lost")
    stage.searcher.on_trial_complete(trial_id, error=True)
    assert stage.sweep.store.trials[1]["retries"] == 1


def test_a_silent_gcs_is_left_to_the_watchdog(stage: Stage, monkeypatch) -> None:
    def silent() -> list[Node]:
        raise RpcError("no answer")

    monkeypatch.setattr(stage.room, "_look", silent)
    stage.beat(later=9)
    assert stage.searcher.failure is None


class Autoscaler:
    """Ray's second one: it refuses a request that is larger than `most` slots as a whole."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.most, self.asked, self.version = most, [], 0
        monkeypatch.setattr(demand, "request_resources", self._request)
        monkeypatch.setattr(live_nodes, "refused_bundles", self._refused)
        monkeypatch.setattr(live_nodes, "state_version", lambda: self.version)

    def _request(self, bundles: list[dict[str, float]]) -> None:
        self.asked.append(len(bundles))

    def _refused(self) -> tuple[int, int]:
        self.version += 1
        too_many = bool(self.asked) and self.asked[-1] > self.most
        return self.version, self.asked[-1] if too_many else 0


def test_demand_is_told_found_and_withdrawn(monkeypatch) -> None:
    autoscaler, now = Autoscaler(monkeypatch, most=5), 0.0
    asks = Demand(Needs(), here=False, clock=lambda: now)
    for _ in range(40):
        asks.tell(100, 0)
        now += ANSWER_S
    assert autoscaler.asked[0] == 100
    assert autoscaler.asked[-1] == max(one for one in autoscaler.asked if one <= 5) == 5
    asks.tell(3, 5)  # the sweep nears its end
    assert autoscaler.asked[-1] == 3
    assert asks.withdraw()
    assert autoscaler.asked[-1] == 0
    told = len(autoscaler.asked)
    assert asks.withdraw()
    assert len(autoscaler.asked) == told


def test_demand_is_told_again_when_another_sweep_has_asked(monkeypatch) -> None:
    autoscaler, now = Autoscaler(monkeypatch, most=5), 0.0
    monkeypatch.setattr(live_nodes, "refused_bundles", lambda: None)  # the first autoscaler
    asks = Demand(Needs(), here=False, clock=lambda: now)
    asks.tell(2, 0)
    now += ANSWER_S
    asks.tell(2, 0)
    assert autoscaler.asked == [2]
    now += demand.AGAIN_S
    asks.tell(2, 0)
    assert autoscaler.asked == [2, 2]


def test_no_autoscaler_is_asked_on_this_machine_alone(monkeypatch) -> None:
    autoscaler = Autoscaler(monkeypatch, most=5)
    asks = Demand(Needs(), here=True)
    asks.tell(2, 0)
    assert asks.withdraw()
    assert autoscaler.asked == []
