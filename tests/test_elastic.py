"""When an elastic run changes its number of workers, and when it gives up; with groups that act."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raybench.cluster import elastic
from raybench.cluster.fit import Node
from raybench.experiment import Experiment, from_json
from trainers.strategies import base

EXPERIMENT = replace(base, data="digits", recipe=replace(base.recipe, epochs=4, batch=16))


class Cluster:
    """CPUs by epochs that are done, and what each group does after its epochs."""

    def __init__(self, cpus: list[int], ends: list[str]) -> None:
        self.cpus, self.ends = cpus, ends
        self.done = 0
        self.groups: list[Group] = []

    def live_nodes(self) -> list[Node]:
        cpus = self.cpus[min(self.done, len(self.cpus) - 1)]
        return [Node(cpus=cpus // 2), Node(cpus=cpus - cpus // 2)]

    def group(self, workers: int, gpus: float) -> Group:
        self.groups.append(Group(self, workers, self.ends[len(self.groups)]))
        return self.groups[-1]


class Group:
    """Plays a `WorkerGroup`: an epoch a report, until its end comes, as `N then what`."""

    def __init__(self, cluster: Cluster, workers: int, end: str) -> None:
        self.cluster, self.workers, self.closed = cluster, workers, False
        lasts, _, self.end = end.partition(" ")
        self.left = int(lasts)

    def start(self, job: Any) -> None:
        self.experiment, self.every_epoch = from_json(job.experiment), job.every_epoch

    def hear(self) -> dict[str, Any] | None:
        if self.left == 0:
            if self.end == "dies":
                return None
            failed = "RuntimeError: closed by peer" if self.end == "breaks" else self.end
            return {"report": json.dumps({"failed": failed})}
        self.left -= 1
        self.cluster.done += 1
        done = self.cluster.done
        said = {"epoch": done, "metrics": {}, "last": done == EXPERIMENT.recipe.epochs}
        return {"report": json.dumps(said)}

    def ended(self, deadline: float) -> bool:
        return self.end == "breaks"

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def run(monkeypatch, tmp_path: Path) -> Callable[..., tuple[list[int], Cluster]]:
    """The epochs that are told, and the groups that were made."""

    def run(cpus: list[int], *ends: str, most: int = 4) -> tuple[list[int], Cluster]:
        cluster = Cluster(cpus, list(ends))
        monkeypatch.setattr(elastic.live_nodes, "live_nodes", cluster.live_nodes)
        monkeypatch.setattr(elastic, "WorkerGroup", cluster.group)
        told: list[int] = []
        for number, _ in elastic.run_elastic(EXPERIMENT, 1, most, 0.0, tmp_path / "state.pt", None):
            told.append(number)
        assert all(group.closed for group in cluster.groups)
        return told, cluster

    return run


def workers(cluster: Cluster) -> list[int]:
    return [group.workers for group in cluster.groups]


def test_all_that_the_batch_divides_over_and_the_cluster_has(run):
    for cpus, expected in ((1, 1), (2, 2), (3, 2), (8, 4)):
        told, cluster = run([cpus], "4 end")
        assert told == [1, 2, 3, 4]
        assert workers(cluster) == [expected]


def test_batch_and_learning_rate_stay(run):
    _, cluster = run([4, 2], "1 dies", "3 end")
    for group in cluster.groups:
        own: Experiment = group.experiment
        assert own.recipe == EXPERIMENT.recipe
        assert own.parallel.workers == group.workers
        assert group.every_epoch


@pytest.mark.parametrize("end", ["dies", "breaks"])
def test_a_death_goes_on_with_what_is_left(run, end):
    told, cluster = run([4, 4, 2], f"2 {end}", "2 end")
    assert told == [1, 2, 3, 4]
    assert workers(cluster) == [4, 2]


def test_a_joining_worker_is_taken_in_after_the_epoch(run):
    told, cluster = run([1, 1, 4], "4 end", "2 end")
    assert told == [1, 2, 3, 4]
    assert workers(cluster) == [1, 4]


def test_deaths_without_an_epoch_between_end_it(run):
    with pytest.raises(RuntimeError, match="died 3 times"):
        run([2], "1 dies", "0 dies", "0 dies")


@pytest.mark.parametrize("failed", ["diverged", "ValueError: no", "KeyError: 'x'"])
def test_a_failure_of_the_training_itself_is_not_tried_again(run, failed):
    with pytest.raises(RuntimeError, match=failed.split(":")[0]):
        run([2], f"1 {failed}")


def test_a_cluster_that_stays_too_small_is_told_at_the_deadline(run, monkeypatch):
    monkeypatch.setattr(elastic, "AGAIN_S", 0.0)
    with pytest.raises(RuntimeError, match="room for fewer than 1 workers"):
        run([0], "1 end")
