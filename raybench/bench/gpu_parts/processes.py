"""One and two processes on one GPU: whether two concurrent trials have a higher throughput."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.synchronize import Barrier

from raybench.bench.gpu_parts.rows import Row
from raybench.experiment import Experiment, from_json
from raybench.training import process
from raybench.training.trainer import train

DEADLINE_S = 120.0


def beside(subject: str, experiment: Experiment) -> Iterator[Row]:
    """Images per second of the last epoch: for one process alone, then for each of two.

    Raises:
        TimeoutError, BrokenBarrierError: a process took more than two minutes.
    """
    for count in (1, 2):
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(count)
        with context.Pool(count, initializer=_meet_at, initargs=(barrier,)) as pool:
            texts = [replace(experiment, seed=seed).to_json() for seed in range(count)]
            waiting = [pool.apply_async(_rate, (text,)) for text in texts]
            rates = [one.get(DEADLINE_S) for one in waiting]
        for seed, rate in enumerate(rates):
            yield Row("e", subject, f"of_{count}", "images_per_s", rate, seed=seed)


_barrier: Barrier | None = None


def _meet_at(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _rate(text: str) -> float:
    """Images per second of the last epoch, which all processes start together, after compiling."""
    process.prepare(threads=1)
    experiment = from_json(text)
    rate = 0.0
    for epoch in train(experiment):
        rate = float(epoch.metrics["images_per_s"])
        if epoch.number == epoch.of - 1:
            assert _barrier is not None
            _barrier.wait(DEADLINE_S)
    return rate
