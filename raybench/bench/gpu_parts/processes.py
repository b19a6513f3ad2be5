"""One and two processes on one GPU: whether two trials at once get more done."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace

from raybench.bench.gpu_parts.rows import Row
from raybench.experiment import Experiment, from_json
from raybench.training import process
from raybench.training.trainer import train

DEADLINE_S = 240.0


def beside(subject: str, experiment: Experiment) -> Iterator[Row]:
    """Images per second of the last epoch: of one process alone, then of each of two together.

    Raises:
        TimeoutError: a process took more than four minutes.
    """
    for count in (1, 2):
        context = multiprocessing.get_context("spawn")
        with context.Pool(count) as pool:
            texts = [replace(experiment, seed=seed).to_json() for seed in range(count)]
            waiting = [pool.apply_async(_rate, (text,)) for text in texts]
            rates = [one.get(DEADLINE_S) for one in waiting]
        for seed, rate in enumerate(rates):
            yield Row("e", subject, f"of_{count}", "images_per_s", rate, seed=seed)


def _rate(text: str) -> float:
    process.prepare(threads=1)
    *_, last = train(from_json(text))
    return float(last.metrics["images_per_s"])
