"""This process and others as the workers of one gloo group, for tests without Ray."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

DEADLINE_S = 120


def together(measure: Callable[..., Any], folder: Path, *args: Any, workers: int = 2) -> list[Any]:
    """What `measure(rank, *args)` gives in each worker, by rank; rank 0 is this process.

    Raises:
        RuntimeError: a worker ended with an error, or not at all.
    """
    context = torch.multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_other, args=(measure, rank, workers, folder, args))
        for rank in range(1, workers)
    ]
    for process in others:
        process.start()
    try:
        _work(measure, 0, workers, folder, args)
        for rank, process in enumerate(others, 1):
            process.join(DEADLINE_S)
            if process.exitcode != 0:
                raise RuntimeError(f"worker {rank} ended with exit code {process.exitcode}")
    finally:
        for process in others:
            process.kill()
    return [torch.load(folder / f"found{rank}.pt") for rank in range(workers)]


def _work(
    measure: Callable[..., Any], rank: int, workers: int, folder: Path, args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=workers,
        timeout=timedelta(seconds=DEADLINE_S),
    )
    try:
        torch.save(measure(rank, *args), folder / f"found{rank}.pt")
    finally:
        dist.destroy_process_group()


def _other(*told: Any) -> None:
    _work(*told)
    # DDP keeps gloo's threads beyond the group's end. One that wants the interpreter while it shuts
    # down aborts the process ("terminate called without an active exception"), once in hundreds.
    os._exit(0)
