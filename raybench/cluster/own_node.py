"""What a worker process asks its own node: is it draining, and which GPUs may be used?"""

from __future__ import annotations

import time

import ray
from ray._private import state
from ray.exceptions import RayError

from raybench.hardware import gpu

LOOK_S = 1.0  # between two requests to the GCS

_looked, _leaves = -LOOK_S, False


def leaving() -> bool:
    """Whether this process's node is draining: about to be terminated, such as a spot instance."""
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
    """Hides every GPU from a worker without assigned GPUs.

    Ray sets CUDA_VISIBLE_DEVICES only for workers with a GPU; others would see all GPUs.
    """
    if not ray.get_gpu_ids():
        gpu.hide()
