"""What a command may use of the machine: checked before Ray, which takes seconds to start."""

from __future__ import annotations

import os


def require_resources(gpus: float | None, concurrent: int | None = None) -> None:
    """Raises ValueError: the numbers make no sense, or this machine has no GPU."""
    if concurrent is not None and concurrent < 1:
        raise ValueError(f"--concurrent is {concurrent}: 1 or more trials run at once")
    if gpus is None:
        return
    if not gpus >= 0:
        raise ValueError(f"--gpus is {gpus}: GPUs of each worker, 0 or more")
    if gpus > 0 and not os.environ.get("RAY_ADDRESS"):
        from raybench.hardware import gpu  # torch takes a second

        if not gpu.count():
            raise ValueError(
                f"--gpus is {gpus}, but this machine has no GPU: take --gpus 0, or set RAY_ADDRESS "
                "to a cluster that has one"
            )
