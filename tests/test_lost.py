"""Whose failure is it: the trial's own, or that of the process or node that ran it?"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pandas as pd
import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)
from small_sweep import CONDITIONAL, EPOCHS, ONE, PLAIN, abandon, drive, metrics, rows
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.cluster import stage_pool, trial, workers
from raybench.cluster.fit import Node
from raybench.cluster.losses import ActorLostError, every_loss_an_actors
from raybench.cluster.workers import WorkerGroup
from raybench.parallel.pipeline.transport import PeerLost
from raybench.search.sweep import RETRIES, Sweep
from raybench.training.loop import Diverged

OF_NODE = "The actor is dead because its node has died. Node Id: 1f"
OF_PROCESS = (
    "The actor is dead because its worker process has died. Some common causes include: (1) the "
    "process was killed by the OOM killer due to high memory usage. Consider enabling resource "
    "isolation via --enable-resource-isolation to prevent node deaths by resource contention"
)
OF_MEMORY = "Task was killed due to the node running low on memory.\nMemory on the node"


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (RayActorError(), "its worker process died"),
        (ActorDiedError(), "its worker process died"),
        (ActorUnavailableError("the actor is temporarily away", None), "its worker process died"),
        (ObjectLostError("00", None, ""), "its worker process died"),
        (GetTimeoutError(), "the driver's machine did not answer"),
        (PeerLost("no word from stage 1: [../gloo/transport/tcp] Read error"), "a stage's process"),
        (trial.LostError("a worker process of its group died"), "a worker process of its group"),
    ],
)
def test_what_is_lost_is_said_in_one_clean_line(error, what):
    said = trial.lost(error)
    assert said.startswith(what)
    assert "\n" not in said
    assert json.loads(trial.failure(error)["report"])["lost"] == said


def test_a_node_is_named_and_no_process_is_taken_for_one():
    assert trial.lost(ActorLostError(OF_NODE)) == "its node was lost"
    assert trial.lost(ActorLostError(OF_PROCESS)) == "its worker process died"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Diverged("loss is nan"), "diverged"),
        (ValueError("no such model"), "ValueError: no such model"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "out_of_memory"),
        (OutOfMemoryError(OF_MEMORY), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (RayTaskError("f", "Traceback: ValueError", ValueError("x")), "ValueError: x"),
        (RayTaskError("f", "Traceback", Diverged("loss is nan")), "diverged"),
    ],
)
def test_what_is_the_trials_own(error, reason):
    assert trial.lost(error) is None
    said = json.loads(trial.failure(error)["report"])
    assert "lost" not in said
    assert said["failed"].startswith(reason)


def test_tune_hears_of_any_loss_as_an_actors():
    """Tune 2.60 ends the whole run for a RayError of another class."""
    heard: list[Exception] = []
    actor = SimpleNamespace(actor_id="a", _on_error=None)
    task = SimpleNamespace(_tracked_actor=actor, _on_error=lambda _, error: heard.append(error))
    manager = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda **_: None)
    before = RayActorManager._actor_task_failed
    with pytest.raises(RuntimeError, match="unexpected exception"):
        before(manager, task, OutOfMemoryError(OF_MEMORY))
    with every_loss_an_actors():
        died = ActorDiedError(ActorDiedErrorContext(error_message=OF_NODE, actor_id=b"0" * 16))
        for error in (OutOfMemoryError(OF_MEMORY), NodeDiedError("the node died"), died):
            RayActorManager._actor_task_failed(manager, task, error)
    assert RayActorManager._actor_task_failed is before
    assert trial.reason(heard[0]) == "out_of_memory"
    lost = [None, "its node was lost", "its node was lost"]
    assert [trial.lost(error) for error in heard] == lost
    again = [pickle.loads(pickle.dumps(error)) for error in heard]
    assert [trial.lost(error) for error in again] == lost
    assert [str(error) for error in again] == [str(error) for error in heard]


class TestNoRoom:
    """After the loss of a node the rest may hold too little: that must not block for minutes."""

    def group(self, monkeypatch: pytest.MonkeyPatch, cpus: list[float]) -> WorkerGroup:
        def resources() -> dict[str, float]:
            return {"CPU": cpus.pop(0) if len(cpus) > 1 else cpus[0]}

        group: WorkerGroup = object.__new__(WorkerGroup)
        group.workers, group.gpus = 2, 0.0
        answers = SimpleNamespace(idle=SimpleNamespace(remote=lambda: None))
        monkeypatch.setattr(group, "_mailbox", answers, raising=False)
        alive = SimpleNamespace(is_alive=lambda: True)
        monkeypatch.setattr(group, "_thread", alive, raising=False)
        monkeypatch.setattr(workers.ray, "cluster_resources", resources)
        monkeypatch.setattr(workers.ray, "get", lambda call, timeout: 0)
        return group

    def test_a_group_waits_for_room_only_briefly(self, monkeypatch):
        group = self.group(monkeypatch, [1.0])
        before = time.monotonic()
        assert not group._wait_until_idle(300.0, 0.1)
        assert time.monotonic() - before < 5

    def test_it_goes_on_waiting_while_it_fits(self, monkeypatch):
        group = self.group(monkeypatch, [1.0, 1.0, 2.0])
        before = time.monotonic()
        assert not group._wait_until_idle(0.5, 0.1)
        assert time.monotonic() - before >= 0.5

    @pytest.mark.parametrize(("states", "placed"), [(["RESCHEDULING"] * 3, True), ([], False)])
    def test_a_lost_stage_waits_for_another_node(self, monkeypatch, states, placed):
        told = iter([*states, "CREATED"] if placed else [])
        table = lambda group: {"state": next(told, "RESCHEDULING")}  # noqa: E731
        monkeypatch.setattr(stage_pool, "placement_group_table", table)
        monkeypatch.setattr(stage_pool, "ROOM_S", 5.0 if placed else 0.2)
        pool: stage_pool.Pool = object.__new__(stage_pool.Pool)
        monkeypatch.setattr(pool, "_group", None, raising=False)
        assert pool.is_placed() == placed


def test_stages_on_gpus_need_nodes_that_hold_them_not_totals(monkeypatch):
    """Two GPUs on a node of one CPU hold one stage; with `--gpus 0` the other node holds all."""
    nodes = [Node(cpus=7), Node(cpus=1, gpus=2)]
    monkeypatch.setattr(stage_pool, "live_nodes", lambda: nodes)
    with pytest.raises(ValueError, match="2 stages of 1 CPU and 1 GPU each, but 2 nodes"):
        stage_pool._reserved(2, False, None)
    monkeypatch.setattr(stage_pool, "placement_group", Reserved)
    monkeypatch.setattr(stage_pool.ray, "get", lambda *_, **__: None)
    assert stage_pool._reserved(2, True, 0.0).bundles == [{"CPU": 1.0}] * 2


class Reserved:
    """A placement group that is ready at once."""

    def __init__(self, bundles: list[dict[str, float]], strategy: str) -> None:
        self.bundles, self.strategy = bundles, strategy

    def ready(self) -> None:
        """Nothing to wait for."""


@pytest.mark.parametrize(
    ("error", "ends"), [(PeerLost("a stage finds no room"), True), (ValueError("no"), False)]
)
def test_a_loss_ends_the_actor_with_its_placement_group(error, ends):
    """Or the next trial would wait for the bundle of the lost node."""

    def broken() -> Iterator[None]:
        raise error
        yield

    actor: trial.TrialActor = object.__new__(trial.TrialActor)
    actor._epochs, actor._started, actor._told = broken(), 0.0, True
    if not ends:
        assert "ValueError" in actor.step()["report"]
        return
    with pytest.raises(trial.LostError) as raised:
        actor.step()
    told = RayTaskError("step", "Traceback of many lines", raised.value).as_instanceof_cause()
    assert trial.lost(told) == "a stage's process died"


class TestSweep:
    def test_the_same_number_goes_on(self, load, tmp_path):
        sweep = Sweep(tmp_path / "s", load(ONE, CONDITIONAL), trials=3, overrides=PLAIN)
        task = sweep.ask()
        sweep.report(task.number, 1, metrics(task, 1))
        task.checkpoint.write_bytes(b"state")
        assert sweep.lost(task.number, "its node was lost")
        again = sweep.ask()
        assert (again.number, again.experiment) == (task.number, task.experiment)
        assert again.checkpoint.read_bytes() == b"state"
        for epoch in range(1, EPOCHS + 1):
            assert not sweep.report(again.number, epoch, metrics(again, epoch))
        sweep.finish(again.number, "COMPLETE")
        drive(sweep)
        sweep.close()
        found = rows(tmp_path / "s")
        assert len(found) == 3
        assert (found[0]["status"], found[0]["retries"]) == ("COMPLETE", 1)
        assert found[0]["last_failure"] == "its node was lost"
        assert pd.isna(found[0]["stop_reason"])
        assert all(pd.isna(found[number]["last_failure"]) for number in (1, 2))

    def test_no_more_than_three_times_across_restarts(self, load, tmp_path):
        space = load(ONE, CONDITIONAL)
        for lost in range(RETRIES + 1):
            sweep = Sweep(tmp_path / "s", space, trials=1, overrides=PLAIN)
            task = sweep.ask()
            assert task.number == 0
            assert sweep.lost(0, f"its node {lost} was lost") == (lost < RETRIES)
            abandon(sweep)
        sweep = Sweep(tmp_path / "s", space, trials=1, overrides=PLAIN)
        assert sweep.unfinished == 0
        sweep.close()
        row = rows(tmp_path / "s")[0]
        assert (row["status"], row["retries"]) == ("FAILED", RETRIES)
        assert row["stop_reason"] == "lost 4 times, the last time: its node 3 was lost"
