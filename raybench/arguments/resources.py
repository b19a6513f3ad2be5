"""Checks of a command's resources, done before Ray starts, which takes seconds."""

from __future__ import annotations

import os


def require_resources(
    gpus: float | None, max_concurrent: int | None = None, wait_s: float | None = None
) -> None:
    """Raises ValueError if a number is invalid, or if this machine has no GPU."""
    if max_concurrent is not None and max_concurrent < 1:
        raise ValueError(f"--max-concurrent is {max_concurrent}: 1 or more trials run at once")
    if wait_s is not None and not wait_s >= 0:
        raise ValueError(f"--wait is {wait_s}: seconds, 0 or more")
    if gpus is None:
        return
    if not gpus >= 0:
        raise ValueError(f"--gpus is {gpus}: GPUs of each worker, 0 or more")
    if gpus > 0 and not os.environ.get("RAY_ADDRESS"):
        from raybench.hardware import gpu  # torch takes a second

        if not gpu.count():
            raise ValueError(
                f"--gpus is {gpus}, but this machine has no GPU: use --gpus 0, or set RAY_ADDRESS "
                "to a cluster that has one"
            )
