"""What a worker process asks of its own node: is it to stay, and which GPUs are mine?"""

from __future__ import annotations

import time

import ray
from ray._private import state
from ray.exceptions import RayError

from raybench.hardware import gpu

LOOK_S = 1.0  # between two questions to the GCS

_looked, _leaves = -LOOK_S, False


def leaving() -> bool:
    """Whether this process's node is about to be taken away, as spot machines are."""
    global _looked, _leaves
    now = time.monotonic()
    if now - _looked >= LOOK_S and ray.is_initialized():
        _looked = now
        try:
            node = ray.get_runtime_context().get_node_id()
            _leaves = node in state.state.get_draining_nodes()
        except RayError:
            _leaves = False
    return _leaves


def hide_foreign_gpus() -> None:
    """Hides every GPU from a worker that was given none.

    Ray restricts CUDA_VISIBLE_DEVICES only for workers with a GPU; others would see them all.
    """
    if not ray.get_gpu_ids():
        gpu.hide()
