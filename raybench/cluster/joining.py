"""Checks before joining a cluster: it answers, accepts the token, and has the same versions."""

from __future__ import annotations

import socket

import ray
from ray.exceptions import AuthenticationError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybench.hardware.versions import DECISIVE, differences, versions

ANSWER_S = 5.0  # deadline for the head to accept a connection; Ray itself tries for minutes
VERSIONS_S = 20.0  # deadline for the nodes to report their versions; late ones are skipped


def require_answer(address: str) -> None:
    """Raises ValueError if nothing listens at an address such as 10.0.0.1:6379."""
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
    """Advice for an error of `ray.init`; None for other errors."""
    if isinstance(error, AuthenticationError):
        return (
            f"the cluster at RAY_ADDRESS={address} refuses this machine's token: copy "
            "~/.ray/auth_token of the head to this machine"
        )
    if isinstance(error, ConnectionError):
        return no_answer(address, error)
    if isinstance(error, RuntimeError) and "Version mismatch" in str(error):
        message = " ".join(str(error).split())
        return f"{message}. Install the cluster's versions here, or submit with raybench.submit"
    return None


def require_same_versions() -> None:
    """Compares the versions of every node of the cluster with this process's.

    Raises:
        ValueError: a node has another Python, Ray, torch or raybench, or cannot import raybench.
    """
    for node, answer in versions_of_nodes(VERSIONS_S):
        if isinstance(answer, Exception):
            raise ValueError(
                f"raybench cannot be imported on node {node} ({_in_short(answer)}): install it "
                "there, or submit with raybench.submit, which uploads it. python -m "
                "raybench.doctor compares all nodes"
            )
        if differs := differences(answer, versions(), DECISIVE):
            raise ValueError(
                f"node {node} has {differs}. Install the same versions everywhere; raybench itself "
                "is uploaded by raybench.submit. python -m raybench.doctor compares all nodes"
            )


@ray.remote(num_cpus=0, max_retries=0)
def _versions() -> dict[str, str]:
    return dict(versions())


def versions_of_nodes(deadline_s: float) -> list[tuple[str, dict[str, str] | Exception]]:
    """Address and versions, or error, of every live node; nodes without answer are left out."""
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[_versions.options(scheduling_strategy=here).remote()] = node["NodeManagerAddress"]
    answers: list[tuple[str, dict[str, str] | Exception]] = []  # two nodes may share an address
    if not asked:
        return answers
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=deadline_s)
    for reference in ready:
        try:
            answers.append((asked[reference], ray.get(reference)))
        except RayError as error:
            if "ModuleNotFoundError" in str(error) or "ImportError" in str(error):
                answers.append((asked[reference], error))
        # Other errors come from a node that is leaving, which the sweep survives.
    # Those without an answer are not cancelled: Ray ends the process with a failed check
    # (task_manager.cc, "Tried to complete task that was not pending") if a cancelled task answers.
    return answers


def _in_short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "Error" in line]
    return lines[-1] if lines else type(error).__name__
