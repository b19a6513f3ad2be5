"""The doctor: each thing that can be wrong with a node is planted, and found in one line."""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import replace

import pytest

from raybench.doctor import __main__ as doctor
from raybench.doctor import destination, facts, link
from raybench.doctor.facts import Facts
from raybench.doctor.findings import Node, findings
from raybench.doctor.link import Link, Listener
from raybench.hardware.versions import differences, versions

OURS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.15.0", "source_sha256": "0123456789ab"}
WELL = Facts(
    host="node",
    system="Linux x86_64",
    versions=OURS,
    cpus=8,
    memory_free=int(30e9),
    disk_free=int(100e9),
    gpus=(),
    driver="",
    gpus_seen=None,
    data="3 files, 100 bytes",
    gloo_interface="",
    interfaces=("lo", "eth0"),
    time=0.0,
)
FAST = Link(latency_s=0.0002, bytes_per_s=1.2e9)


def told(*changed: dict | Node, data: str = "cifar10") -> list[str]:
    """The findings of three nodes, of which the first ones are changed so."""
    nodes = [Node(name=f"10.0.0.{i}", facts=WELL, skew_s=0.0, link=FAST) for i in (1, 2, 3)]
    for place, change in enumerate(changed):
        if isinstance(change, Node):
            nodes[place] = change
        else:
            nodes[place] = replace(nodes[place], facts=replace(WELL, **change))
    return [str(finding) for finding in findings(nodes, OURS, data)]


def test_a_cluster_that_is_well_has_no_findings():
    assert told() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"versions": {**OURS, "torch": "2.14.0"}}, "torch 2.14.0 instead of 2.15.0"),
        ({"versions": {**OURS, "python": "3.12.1"}}, "python 3.12.1 instead of 3.11.7"),
        (
            {"versions": {**OURS, "source_sha256": "f" * 64}},
            "other sources of raybench (ffffffff instead of 01234567)",
        ),
        ({"versions": {**OURS, "ray": ""}}, "no ray"),
        ({"data": None}, "no data set cifar10"),
        ({"data": "2 files, 99 bytes"}, "other files of cifar10 than the other nodes"),
        ({"memory_free": int(1e9)}, "1.0 GB of memory left"),
        ({"disk_free": int(2e9)}, "2.0 GB of disk left"),
        ({"gpus": ("H100",), "driver": "470.1", "gpus_seen": 0}, "a GPU that torch does not see"),
        ({"gloo_interface": "ib0"}, "no interface GLOO_SOCKET_IFNAME=ib0, but lo, eth0"),
    ],
)
def test_what_is_wrong_with_one_node_is_told_once(change, words):
    lines = told(change)
    assert len(lines) == 1
    assert lines[0].startswith("wrong: 10.0.0.1 has ")
    assert words in lines[0]


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (
            Node(name="a", facts=None, error="no answer in 12 s"),
            "wrong: a does not answer: no answer in 12 s",
        ),
        (Node(name="a", facts=WELL, skew_s=-7.0, skew_error_s=0.1), "the clock of a is -7 s off"),
        (Node(name="a", facts=WELL, link_error="timed out"), "open all TCP ports"),
        (
            Node(name="a", facts=WELL, link=Link(latency_s=0.05, bytes_per_s=1e7)),
            "note: a has a slow connection to the next node (10 MB/s, 50.0 ms)",
        ),
    ],
)
def test_what_is_wrong_between_nodes_is_told_once(node, words):
    lines = told(node)
    assert len(lines) == 1
    assert words in lines[0]


def test_what_is_no_fault_is_not_told():
    """A build for GPUs, a GPU that torch sees, a slow answer about the clock, unknown memory."""
    gpu = {"gpus": ("H100",), "driver": "570", "gpus_seen": 1}
    fine = {**gpu, "versions": {**OURS, "torch": "2.15.0+cu130"}, "memory_free": -1}
    assert told(fine, Node(name="a", facts=WELL, skew_s=3.0, skew_error_s=1.5)) == []


def test_a_difference_that_trials_survive_is_a_note():
    lines = told({"system": "Linux aarch64"}, {"versions": {**OURS, "timm": "1.0.1"}})
    assert [line.split(":")[0] for line in lines] == ["note", "note"]
    assert told({"data": "download"}, {"data": "download"}, {"data": "download"})[0].startswith(
        "note"
    )


def test_differences_are_of_the_names_that_were_asked_for():
    theirs = {**OURS, "torch": "2.15.0+cpu", "timm": "1"}
    assert differences(theirs, {**OURS, "timm": "2"}, ("torch", "python")) == ""
    assert differences(theirs, {**OURS, "timm": "2"}, ("timm",)) == "timm 1 instead of 2"


def test_this_machine_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYBENCH_DATA", str(tmp_path))
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.png").write_bytes(b"12345")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib7")
    here = facts.facts("photos")
    assert here.data == "1 files, 5 bytes"
    assert here.versions == versions()
    assert here.memory_free > 1e8
    assert here.disk_free > 1e6
    assert here.cpus >= 1
    assert "lo" in here.interfaces
    assert here.gloo_interface == "ib7"
    assert Facts(**here.plain()) == here
    assert facts.facts("nowhere").data is None
    assert facts.facts("digits").data == "embedded"


def test_a_gpu_is_read_from_its_driver(tmp_path, monkeypatch):
    """A stand-in for nvidia-smi; torch has no GPU here."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 570.86, 81079'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    names, driver = facts._gpus()
    assert (names, driver) == (("NVIDIA H100 80GB HBM3",), "570.86")


def test_a_link_is_measured():
    listener = Listener("127.0.0.1")
    try:
        measured = link.measure(*listener.address)
    finally:
        listener.close()
    assert 0 < measured.latency_s < 1
    assert measured.bytes_per_s > 1e6


@pytest.mark.parametrize("how", ["refused", "silent", "closed"])
def test_a_link_that_does_not_work_is_an_error_in_time(how, monkeypatch):
    monkeypatch.setattr(link, "ANSWER_S", 0.2)
    monkeypatch.setattr(link, "CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        if how == "closed":
            threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        if how == "refused":
            server.close()
        began = time.monotonic()
        with pytest.raises(OSError, match=r"."):
            link.measure(*address)
    assert time.monotonic() - began < 5


class TestDestination:
    def test_a_folder_that_can_be_written(self, tmp_path):
        assert destination.trouble(str(tmp_path / "new" / "results")) is None
        assert destination.trouble(f"file://{tmp_path}") is None
        assert [*tmp_path.iterdir()] == []

    def test_one_that_cannot(self, tmp_path):
        assert "/proc/" in (destination.trouble("/proc/results") or "")
        assert "ghost" in (destination.trouble("ghost://bucket/x") or "")

    def test_one_that_never_answers(self, monkeypatch):
        over = threading.Event()
        monkeypatch.setattr(destination, "_in_a_folder", lambda _: over.wait(30))
        monkeypatch.setattr(destination, "ANSWER_S", 0.1)
        assert destination.trouble("results") == "no answer in 0.1 s"
        over.set()


class TestCommand:
    def run(self, nodes, capsys, monkeypatch, tmp_path) -> tuple[int, list[str]]:
        monkeypatch.setattr(doctor, "_nodes", lambda data: nodes)
        monkeypatch.setattr(doctor, "versions", lambda: OURS)
        monkeypatch.setenv("COLUMNS", "80")
        code = doctor.run(["--results", str(tmp_path), "--data", "cifar10"])
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        return code, lines

    def test_the_table_fits_and_the_code_tells(self, capsys, monkeypatch, tmp_path):
        gpu = {"gpus": ("NVIDIA H100 80GB HBM3",) * 8, "driver": "570", "gpus_seen": 8}
        big = replace(WELL, cpus=192, memory_free=int(2e12), disk_free=int(30e12), **gpu)
        nodes = [
            Node(name=f"192.168.100.{i}", facts=big, skew_s=0.01, link=FAST) for i in (101, 102)
        ]
        code, lines = self.run(nodes, capsys, monkeypatch, tmp_path)
        assert code == 0
        assert lines[-1] == "all is well"
        text = "\n".join(lines)
        assert all(word in text for word in ("192.168.100.101", "8× H100", "1,200"))

    def test_something_wrong_is_code_1(self, capsys, monkeypatch, tmp_path):
        lost = Node(name="10.0.0.9", facts=None, error="no answer in 12 s")
        nodes = [Node(name="10.0.0.1", facts=WELL), lost]
        code, lines = self.run(nodes, capsys, monkeypatch, tmp_path)
        assert (code, lines[-1]) == (1, "1 wrong, 0 to note")
        assert "wrong: 10.0.0.9 does not answer: no answer in 12 s" in lines

    def test_of_this_machine(self, monkeypatch, tmp_path, capsys):
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        assert doctor.run(["--results", str(tmp_path)]) in (0, 1)
        assert "here" in capsys.readouterr().out


def test_a_dead_address_is_told_in_seconds(monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    began = time.monotonic()
    assert doctor.run([]) == 2
    assert time.monotonic() - began < 20
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:9" in error
