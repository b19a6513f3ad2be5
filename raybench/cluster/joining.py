"""Joining a cluster: does it answer, does it take us, and do its nodes run what we run?"""

from __future__ import annotations

import contextlib
import socket

import ray
from ray.exceptions import AuthenticationError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybench.hardware.versions import DECISIVE, differences, versions

ANSWER_S = 5.0  # for the head to take a connection; Ray itself tries for minutes
VERSIONS_S = 20.0  # for all nodes to tell theirs; those that have not by then are left out


def require_answer(address: str) -> None:
    """Raises ValueError: nothing listens at an address such as 10.0.0.1:6379."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return  # such as `auto`, which Ray resolves
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except OSError as error:
        raise ValueError(no_answer(address, error)) from error


def no_answer(address: str, error: object) -> str:
    """Advice for a cluster that cannot be reached."""
    return (
        f"no Ray cluster answers at RAY_ADDRESS={address} ({error}). Is it up? If it requires "
        "a token, set RAY_AUTH_MODE=token. Unset RAY_ADDRESS to run here"
    )


def refusal(address: str, error: BaseException) -> str | None:
    """Advice for an error of `ray.init`, or None if there is none."""
    if isinstance(error, AuthenticationError):
        return (
            f"the cluster at RAY_ADDRESS={address} refuses this machine's token: copy "
            "~/.ray/auth_token of the head to this machine"
        )
    if isinstance(error, ConnectionError):
        return no_answer(address, error)
    if isinstance(error, RuntimeError) and "Version mismatch" in str(error):
        told = " ".join(str(error).split())
        return f"{told}. Install the cluster's versions here, or submit with raybench.submit"
    return None


def require_same_versions() -> None:
    """Compares every node of the cluster with this process, in a second or two.

    Raises:
        ValueError: a node runs another Python, Ray, torch or raybench, or cannot import raybench.
    """
    for node, told in versions_of_nodes(VERSIONS_S):
        if isinstance(told, Exception):
            raise ValueError(
                f"raybench cannot be imported on node {node} ({_in_short(told)}): install it "
                "there, or submit with raybench.submit, which takes it along. python -m "
                "raybench.doctor compares all nodes"
            )
        if differs := differences(told, versions(), DECISIVE):
            raise ValueError(
                f"node {node} has {differs}. Install the same versions everywhere; raybench itself "
                "travels with raybench.submit. python -m raybench.doctor compares all nodes"
            )


@ray.remote(num_cpus=0, max_retries=0)
def _versions() -> dict[str, str]:
    return dict(versions())


def versions_of_nodes(deadline_s: float) -> list[tuple[str, dict[str, str] | Exception]]:
    """Address of every live node, and what it tells; nodes that do not answer are left out."""
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[_versions.options(scheduling_strategy=here).remote()] = node["NodeManagerAddress"]
    told: list[tuple[str, dict[str, str] | Exception]] = []  # two nodes may share an address
    if not asked:
        return told
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=deadline_s)
    for reference in ready:
        try:
            told.append((asked[reference], ray.get(reference)))
        except RayError as error:
            if "ModuleNotFoundError" in str(error) or "ImportError" in str(error):
                told.append((asked[reference], error))
        # Others are those of a node that goes away, which the sweep survives.
    for reference in asked:
        with contextlib.suppress(Exception):
            ray.cancel(reference, force=False)
    return told


def _in_short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "Error" in line]
    return lines[-1] if lines else type(error).__name__
