"""Clusters whose nodes share no disk and are lost: Linux namespaces on this machine."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raybench.bench import cluster as bench
from raybench.bench import machines
from raybench.bench.cluster_parts import churn, large_states, lost_nodes, waiting_space, works
from raybench.bench.cluster_parts.driven import Driven, until, with_process
from raybench.bench.machines import Machines

REASON = machines.why_not()
needs_namespaces = pytest.mark.skipif(REASON is not None, reason=str(REASON))
real = [pytest.mark.ray, pytest.mark.timeout(900), needs_namespaces]
nightly = [*real, pytest.mark.nightly]
MOVES_S = 240.0


def marked(*marks: Any) -> Any:
    return lambda test: [test := mark(test) for mark in marks][-1]


@marked(*real)
def test_a_sweep_without_a_shared_folder_brings_everything_home() -> None:
    with Machines() as cluster:
        cluster.head(cpus=0)
        node = cluster.node(cpus=1)
        cluster.ready()
        driven = Driven(cluster, waiting_space, 2, "--epochs", "2", "--keep", "all")
        assert driven.wait(MOVES_S) == 0, driven.log
        assert works.is_complete(driven)
        assert not list(driven.folder.rglob("*seen-*"))
        # The node has kept nothing, and has no folder of results.
        assert not node.path("/tmp/results").exists()
        assert not list(node.path("/tmp").glob("raybench-trial-*"))
        assert {m.address for m in with_process(cluster, "raylet")} == {node.address}
    assert not node.alive


@marked(*nightly)
def test_a_group_and_a_pipeline_run_without_one_too() -> None:
    assert works.measure()["works"] == 3


@marked(*nightly)
@pytest.mark.parametrize("kind", lost_nodes.TITLES)
def test_a_lost_node_costs_a_trial_only_time(kind: str) -> None:
    times, lost, restarted = lost_nodes.killed(kind, 1, random.Random(0))
    assert (lost, restarted) == (0, 0)
    assert len(times) == 1


@marked(*nightly)
@pytest.mark.parametrize("beside", [True, False], ids=["trial's node", "other node"])
def test_a_pipeline_is_made_again_with_its_trials_actor_or_around_it(beside: bool) -> None:
    space, more = works.KINDS["stages"]
    with Machines() as cluster:
        cluster.head(cpus=0)
        for _ in range(3):
            cluster.node(cpus=1)
        cluster.ready()
        calm = Driven(cluster, space, 1, "--epochs", "60", *more)
        assert calm.wait(MOVES_S) == 0
        driven = Driven(cluster, space, 1, "--epochs", "60", "--keep", "none", *more)
        assert until(lambda: driven.epochs() > 2, MOVES_S, driven)
        stages = with_process(cluster, lost_nodes.TITLES["stages"])
        (trial,) = with_process(cluster, lost_nodes.TITLES["one_worker"])
        assert len(stages) == 2
        next(node for node in stages if (node is trial) == beside).kill()
        assert driven.wait(MOVES_S) == 0, driven.log
        (row,) = rows(driven.folder)
        assert row["status"] == "COMPLETE"
        assert (row["restarts"], row.get("retries")) == ((0, 1) if beside else (1, None))
        assert row["loss"] == rows(calm.folder)[0]["loss"]  # nothing was trained twice or left out


@marked(*nightly)
def test_a_group_without_room_waits_briefly_and_goes_on_with_the_next_node() -> None:
    space, more = works.KINDS["workers"]
    with Machines() as cluster:
        cluster.head(cpus=0)
        for _ in range(2):
            cluster.node(cpus=1)
        cluster.ready()
        driven = Driven(cluster, space, 1, "--epochs", "60", *more)
        assert until(lambda: driven.epochs() > 2, MOVES_S, driven)
        cluster.nodes[0].kill()
        assert until(lambda: "resumes from its last" in driven.log, MOVES_S, driven)
        time.sleep(20.0)  # that there is no room for so long is what is tested
        cluster.node(cpus=1)
        assert driven.wait(MOVES_S) == 0, driven.log
        assert rows(driven.folder)[0]["status"] == "COMPLETE"


@marked(*nightly)
def test_a_node_that_is_cut_off_without_a_word_is_lost_too() -> None:
    with Machines() as cluster:
        cluster.head(cpus=0)
        for _ in range(2):
            cluster.node(cpus=1)
        cluster.ready()
        driven = Driven(cluster, waiting_space, 1, "--epochs", "60")
        assert until(lambda: driven.epochs() > 2, MOVES_S, driven)
        (victim,) = with_process(cluster, lost_nodes.TITLES["one_worker"])
        cluster.unplug(victim)
        assert until(lambda: driven.goes_on() == 1, MOVES_S, driven), driven.log
        assert driven.wait(MOVES_S) == 0, driven.log


@marked(*nightly)
def test_states_of_350_mb_pass_through_little_memory() -> None:
    figures = large_states.measure()
    assert figures["large_works"] == 1
    assert figures["driver_grows_mb"] < 100
    assert figures["files_grow_mb"] < 100


@marked(*nightly)
def test_nodes_die_and_join_under_a_sweep() -> None:
    figures = churn.measure(kills=4, seed=1)
    assert figures["node_kills"] == 4
    wrong = {name: figures[name] for name in ("lost", "duplicates", "wrong", "hangs")}
    assert wrong == dict.fromkeys(wrong, 0)


@needs_namespaces
def test_machines_are_apart_and_leave_nothing(tmp_path: Path) -> None:
    with Machines() as cluster:
        one, two = cluster.empty(), cluster.empty()
        one.path("/tmp/mine").write_text("1")
        assert not two.path("/tmp/mine").exists()
        command = ["python3", "-I", "-S", "-c", TALK]
        listens = two.start([*command, "listen", two.address], "/tmp/listens")
        assert until_said(listens, "ready")
        talks = one.start([*command, "talk", two.address], "/tmp/talks")
        assert talks.wait(20) == 0
        assert talks.log == "hello from node2 at 127.0.1.1\n"
        sleeps = one.start(["sleep", "1000"], "/tmp/sleeps")
        pid = sleeps.pid
        assert Path(f"/proc/{pid}").exists()
        one.kill()
        assert not one.alive
        assert sleeps.wait(20) is not None
        assert not Path(f"/proc/{pid}").exists()
        pids = [machine.pid for machine in cluster.machines]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_the_bench_says_why_it_cannot_run(monkeypatch) -> None:
    monkeypatch.setattr(machines, "why_not", lambda: "no namespaces here")
    assert bench.measure("works") == {"skipped": ["no namespaces here"]}
    with pytest.raises(ValueError, match=r"no part 'wroks'.*works"):
        bench.measure("wroks")


def test_parts_of_the_bench_add_up(monkeypatch) -> None:
    class Part:
        def __init__(self, **figures: float) -> None:
            self.measure = lambda: dict(figures)

    monkeypatch.setattr(machines, "why_not", lambda: None)
    monkeypatch.setattr(bench, "PARTS", {"a": Part(lost=1, x=2), "b": Part(lost=2), "c": Part()})
    assert bench.measure() == {"lost": 3, "x": 2}
    assert bench.measure("a") == {"lost": 1, "x": 2}


TALK = """
import socket, sys
what, address = sys.argv[1:]
if what == "listen":
    server = socket.create_server((address, 5000))
    print("ready", flush=True)
    name = socket.gethostname()
    server.accept()[0].sendall(f"hello from {name} at {socket.gethostbyname(name)}".encode())
else:
    print(socket.create_connection((address, 5000), 10).recv(100).decode())
"""


def until_said(command: machines.Command, word: str) -> bool:
    end = time.monotonic() + 20
    while word not in command.log and time.monotonic() < end:
        time.sleep(0.02)
    return word in command.log


def rows(folder: Path) -> list[dict[str, Any]]:
    return pd.read_parquet(folder / "trials").replace({float("nan"): None}).to_dict("records")
