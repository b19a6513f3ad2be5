"""The cluster's nodes according to Ray: the live ones, and those that could be started."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private import ray_constants, state
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated import autoscaler_pb2
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_get

from raybench.cluster.fit import Node

ANSWER_S = 5
ENOUGH = 1000  # most nodes of a type; no trial needs more
OWN_TYPE = "node_"  # prefix of Ray's type name for a node that no autoscaler has started


def live_nodes() -> list[Node]:
    """The nodes that can run trials: alive, and not draining."""
    leaving: Mapping[str, int] = state.state.get_draining_nodes()
    return [
        Node(
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            name=node["NodeID"],
        )
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in leaving
    ]


def autoscales() -> bool:
    """Whether Ray reports an autoscaler that may add nodes."""
    if is_autoscaler_v2():
        return True
    active = (_status().get("autoscaler_report") or {}).get("active_nodes") or {}
    return any(not kind.startswith(OWN_TYPE) for kind in active)


def refused_bundles() -> tuple[int, int] | None:
    """Autoscaler v2's answer to the last request.

    Returns:
        The version of the cluster's state that it has processed, which grows, and the number of
        requested bundles that it cannot fulfil; None for autoscaler v1, which gives no answer.
    """
    if not is_autoscaler_v2():
        return None
    answer = _cluster_status().autoscaling_state
    bundles = sum(
        request.count
        for constraint in answer.infeasible_cluster_resource_constraints
        for request in constraint.resource_requests
    )
    return answer.last_seen_cluster_resource_state_version, bundles


def state_version() -> int:
    """The current version of the cluster's state, to compare with that of `refused_bundles`."""
    return int(_cluster_status().cluster_resource_state.cluster_resource_state_version)


def node_types() -> list[Node] | None:
    """One entry per node that the autoscaler could start; None if Ray does not tell.

    They are in the autoscaler's configuration, a file on the head, where jobs usually run.
    """
    config = state.state.get_cluster_config()
    if config is not None and config.node_group_configs:
        groups = [
            (group.name, dict(group.resources), group.max_count)
            for group in config.node_group_configs
        ]
        return [node for name, has, most in groups for node in _of_type(name, has, most)]
    path = _config_file()
    if path is None:
        return None
    try:
        content: dict[str, Any] = yaml.safe_load(path.read_text())
        types: dict[str, dict[str, Any]] = content["available_node_types"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return None
    head, most = content.get("head_node_type"), int(content.get("max_workers", 0))
    able = {name: kind for name, kind in types.items() if name != head}
    if not all("CPU" in kind.get("resources", {}) for kind in able.values()):
        return None  # the types' resources are unknown
    return [
        node
        for name, kind in able.items()
        for node in _of_type(name, kind["resources"], min(most, kind.get("max_workers", most)))
    ]


def _of_type(name: str, has: Mapping[str, float], most: int) -> list[Node]:
    count = min(most, ENOUGH) if most >= 0 else ENOUGH
    node = Node(cpus=float(has.get("CPU", 0)), gpus=float(has.get("GPU", 0)), name=name)
    return [node] * count


def _config_file() -> Path | None:
    """The configuration file of autoscaler v1, if its process runs on this node."""
    pid = _status().get("monitor_pid")
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (OSError, ValueError):
        return None
    if not any(word.endswith("monitor.py") for word in words):
        return None  # another process on this node has the same id
    for word in words:
        if word.startswith("--autoscaling-config="):
            path = Path(os.path.expanduser(word.partition("=")[2]))
            return path if path.is_file() else None
    return None


def _status() -> dict[str, Any]:
    """The latest status that autoscaler v1 has written."""
    try:
        written = _internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS)
    except RayError:
        return {}
    return dict(json.loads(written)) if written else {}


def _cluster_status() -> Any:
    worker: Any = ray._private.worker.global_worker
    messages: Any = autoscaler_pb2
    reply = messages.GetClusterStatusReply()
    reply.ParseFromString(worker.gcs_client.get_cluster_status(timeout_s=ANSWER_S))
    return reply
