"""What Ray says about the cluster's nodes: those that are there, and those that could come."""

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
ENOUGH = 1000  # nodes of a type: no trial is larger
OWN_TYPE = "node_"  # Ray's own name for a node that no autoscaler has started


def live_nodes() -> list[Node]:
    """The nodes that can take trials: alive, and not about to be taken away."""
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
    """Whether an autoscaler may add nodes, as far as Ray tells."""
    if is_autoscaler_v2():
        return True
    active = (_status().get("autoscaler_report") or {}).get("active_nodes") or {}
    return any(not kind.startswith(OWN_TYPE) for kind in active)


def refused_bundles() -> tuple[int, int] | None:
    """What the second autoscaler says about the last request for room.

    Returns:
        The state of the cluster that it has seen, a number that grows, and the bundles of requests
        that it cannot fulfil; None from the first autoscaler, which does not tell.
    """
    if not is_autoscaler_v2():
        return None
    told = _cluster_status().autoscaling_state
    bundles = sum(
        request.count
        for constraint in told.infeasible_cluster_resource_constraints
        for request in constraint.resource_requests
    )
    return told.last_seen_cluster_resource_state_version, bundles


def state_version() -> int:
    """The number of the cluster's state now, to be compared with that of `refused_bundles`."""
    return int(_cluster_status().cluster_resource_state.cluster_resource_state_version)


def node_types() -> list[Node] | None:
    """A node for each one that the autoscaler could start; None where Ray does not tell.

    Ray keeps this in the autoscaler's configuration, a file on the head, where jobs usually run.
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
        return None  # they are not told
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
    """The file that the first autoscaler's process was started with, if it runs on this node."""
    pid = _status().get("monitor_pid")
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (OSError, ValueError):
        return None
    if not any(word.endswith("monitor.py") for word in words):
        return None  # a process of this node with the same number
    for word in words:
        if word.startswith("--autoscaling-config="):
            path = Path(os.path.expanduser(word.partition("=")[2]))
            return path if path.is_file() else None
    return None


def _status() -> dict[str, Any]:
    """What the first autoscaler has last written about itself."""
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
