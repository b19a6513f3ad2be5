"""Joining a cluster: what is refused, in one line that tells the way on."""

from __future__ import annotations

import socket
import time

import pytest
from ray.exceptions import AuthenticationError

from raybench.cluster import joining
from raybench.hardware.versions import versions


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"torch": "1.0.0"}, "has torch 1.0.0 instead of"),
        ({"source_sha256": "f" * 64}, "has other sources of raybench (ffffffff instead of"),
        ({"python": "3.9.1", "ray": "2.40.0"}, "has python 3.9.1 instead of"),
        (ModuleNotFoundError("x\nModuleNotFoundError: No module named 'raybench'\n"), "'raybench'"),
    ],
)
def test_a_node_with_other_versions_is_refused(told, words, monkeypatch):
    odd = told if isinstance(told, Exception) else {**versions(), **told}
    nodes = [("10.0.0.2", odd), ("10.0.0.1", dict(versions()))]
    monkeypatch.setattr(joining, "versions_of_nodes", lambda _: nodes)
    with pytest.raises(ValueError, match=r"10\.0\.0\.2") as error:
        joining.require_same_versions()
    assert words in str(error.value)
    assert "raybench.submit" in str(error.value)
    assert "\n" not in str(error.value)


def test_another_build_of_torch_and_other_libraries_of_images_are_fine(monkeypatch):
    built = {**versions(), "torch": versions()["torch"].partition("+")[0] + "+cu130", "timm": "0.1"}
    monkeypatch.setattr(joining, "versions_of_nodes", lambda _: [("10.0.0.2", built)])
    joining.require_same_versions()


def test_what_does_not_answer_is_told_in_seconds():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        joining.require_answer(f"127.0.0.1:{port}")
    began = time.monotonic()
    with pytest.raises(ValueError, match="no Ray cluster answers at RAY_ADDRESS"):
        joining.require_answer(f"127.0.0.1:{port}")
    assert time.monotonic() - began < 10
    joining.require_answer("auto")  # Ray finds it


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AuthenticationError("no token"), "copy ~/.ray/auth_token of the head"),
        (ConnectionError("nobody there"), "no Ray cluster answers"),
        (
            RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n"),
            "Version mismatch: The cluster was started with: Ray: 2.50.0. Install",
        ),
        (RuntimeError("something else"), None),
    ],
)
def test_an_error_of_ray_becomes_one_line(error, words):
    advice = joining.refusal("10.0.0.1:6379", error)
    assert (advice is None) if words is None else (words in (advice or ""))
    assert "\n" not in (advice or "")
