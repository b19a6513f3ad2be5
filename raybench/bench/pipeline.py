"""Utilization of a pipeline's stages, and its time against other ways to use two cores."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from raybench import data
from raybench.cluster.session import session
from raybench.cluster.stage_pool import release
from raybench.cluster.stages import Staged
from raybench.experiment import Experiment, Parallel, Pipeline, from_json
from raybench.parallel.pipeline import balance
from raybench.parallel.pipeline.codec import Codec
from raybench.parallel.pipeline.shared_memory import FOLDER, SharedLink
from raybench.parallel.pipeline.transport import GlooLink, Link
from raybench.training import process
from raybench.training.loop import fit
from raybench.training.staged import Alone, Report
from trainers.pipeline import base

MODELS = {"resnet18": "resnet18", "mobilenetv2": "mobilenet_v2", "vgg11": "vgg11"}
STAGES, CHUNKS = 2, 4
BATCH = 256  # chunks of 64; smaller ones make convolutions slower, whatever the schedule
ROUNDS, STEPS, ROUND_S = 3, 2, 240  # seconds: the deadline of a round of one side
HOPS, HOP_BYTES = 40, 4 << 20

claims = {
    **{f"efficiency_{name}": "reach 0.95; reference project about 0.69" for name in MODELS},
    **{f"kept_busy_{name}": "1 is a perfect schedule of the seconds used" for name in MODELS},
    **{f"two_cores_{name}": "of 1: what two cores at work leave to each" for name in MODELS},
    **{f"ddp_ratio_{name}": "time a batch over that of two DDP workers" for name in MODELS},
    **{f"threads_ratio_{name}": "over that of one process with two threads" for name in MODELS},
    "wire_ratio_4bit": "reach 6.5",
    "max_gradient_difference": "0",
}


def measure() -> dict[str, float]:
    """Two stages of one core each, batch 256; medians of interleaved rounds.

    With K stages and M chunks, r is the slower stage's seconds over the mean, measured with M
    chunks. A batch then ideally takes (1 + (M - 1) r / K) / M of the stages' total seconds.

    `efficiency_*` is the speed-up of 4 chunks over 1 chunk, divided by the ideal one, M / (1 + (M -
    1) r / K); with equal stages that is K M / (M + K - 1). With 1 chunk one core works at a time,
    with 4 both do, and two busy cores are each slower. `two_cores_*` is the rate of two plain
    processes at once over twice that of one: an upper bound of the efficiency. `kept_busy_*` is the
    ideal time, from the stages' seconds with 4 chunks, over the measured time; below 1, the rest is
    spent on the schedule, the messages and the calls.

    `ddp_ratio_*` and `threads_ratio_*` are times per batch over those of two DDP workers and of one
    process with two threads. `hop_ms_*` is the time to send 4 MB one way. `max_gradient_difference`
    is the largest difference of a weight, after a step in fp32, from one process with the same
    chunks.
    """
    figures: dict[str, float] = {}
    with session():
        for name, model in MODELS.items():
            figures |= {f"{key}_{name}": value for key, value in _model(model).items()}
        figures["max_gradient_difference"] = max(map(_difference, MODELS.values()))
        release()
    shape = (BATCH // CHUNKS, 64, 32, 32)
    fp32, packed = (Codec(bits).message_bytes(shape, torch.float32) for bits in (32, 4))
    figures["wire_ratio_4bit"] = fp32 / packed
    for transport in ("gloo", "shm"):
        figures[f"hop_ms_4mb_{transport}"] = _hop_ms(transport)
    return figures


def _model(model: str) -> dict[str, float]:
    experiment = _experiment(model)
    two = replace(experiment, parallel=Parallel(workers=2))
    plain = Processes(experiment, 2, together=False)
    ddp, threads = Processes(two, 2, together=True), Processes(experiment, 1, threads=2)
    sides: dict[str, Callable[[], float]] = {
        "alone": lambda: plain.round(first=1),
        "both": plain.round,
        "ddp": ddp.round,
        "threads": threads.round,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("one", "four", *sides)}
    ideals, kept, unequal = [], [], []
    try:
        for number in range(1, ROUNDS + 1):
            one, _ = _staged(experiment, 1)
            four, busy = _staged(experiment, CHUNKS)
            unequal.append(balance.imbalance(busy))
            share = (1 + (CHUNKS - 1) * unequal[-1] / STAGES) / CHUNKS
            ideals.append(1 / share)
            kept.append(sum(busy) * share / four)
            seconds["one"].append(one)
            seconds["four"].append(four)
            for name, side in sides.items():
                seconds[name].append(side())
            line = f"{model}, round {number} of {ROUNDS}: {one / four * share:.3f}"
            print(line, file=sys.stderr, flush=True)
    finally:
        for processes in (plain, ddp, threads):
            processes.close()
    speed_ups = [a / b for a, b in zip(seconds["one"], seconds["four"], strict=True)]
    efficiencies = [a / b for a, b in zip(speed_ups, ideals, strict=True)]
    return {
        "efficiency": median(efficiencies),
        "efficiency_min": min(efficiencies),
        "efficiency_max": max(efficiencies),
        "kept_busy": median(kept),
        "two_cores": _ratio(seconds["alone"], seconds["both"]),
        "imbalance": median(unequal),
        "s_per_batch": median(seconds["four"]),
        "ddp_ratio": _ratio(seconds["four"], seconds["ddp"]),
        "threads_ratio": _ratio(seconds["four"], seconds["threads"]),
    }


def _experiment(model: str) -> Experiment:
    """An experiment with as many digits as give an epoch `STEPS` steps."""
    recipe = replace(base.recipe, batch=BATCH, epochs=2 * ROUNDS + 2, lr=0.01)
    experiment = replace(base, model=model, recipe=recipe, pipeline=Pipeline())
    share = (STEPS * BATCH + 0.5) / len(data.load(experiment).train)
    return replace(experiment, subset=share)


def _staged(experiment: Experiment, chunks: int) -> tuple[float, list[float]]:
    """Seconds per batch, and busy seconds of each stage, in the second epoch.

    The cuts are always those chosen for 4 chunks.
    """
    cuts = _cuts(experiment)
    pipeline = Pipeline(stages=STAGES, chunks=chunks, transport="shm", cuts=cuts, schedule="1f1b")
    experiment = replace(experiment, pipeline=pipeline)
    staged = Staged(experiment, data.load(experiment), None)
    staged.epoch(1)  # warm-up: buffers are allocated
    reports = staged.epoch(2)
    staged.close()
    return _batch_s(reports), [report.busy_s / STEPS for report in reports]


_CHOSEN: dict[str, str] = {}


def _cuts(experiment: Experiment) -> str:
    if experiment.model not in _CHOSEN:
        pipeline = Pipeline(stages=STAGES, chunks=CHUNKS, transport="shm")
        experiment = replace(experiment, pipeline=pipeline)
        staged = Staged(experiment, data.load(experiment), None)
        _CHOSEN[experiment.model] = ",".join(map(str, staged.cuts))
        staged.close()
    return _CHOSEN[experiment.model]


def _batch_s(reports: list[Report]) -> float:
    return max(report.wall_s for report in reports) / STEPS


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return median(a / b for a, b in zip(ours, theirs, strict=True))


class Processes:
    """`fit` in separate processes, which are independent or DDP workers.

    Args:
        count: number of processes, each with `threads` threads.
        together: whether they form one DDP group.
    """

    def __init__(
        self, experiment: Experiment, count: int, *, together: bool = False, threads: int = 1
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._scratch = tempfile.TemporaryDirectory(prefix="raybench-")
        self._pipes, self._processes = [], []
        for rank in range(count):
            ours, theirs = context.Pipe()
            group = (rank, count, self._scratch.name) if together else None
            arguments = (experiment.to_json(), threads, group, theirs)
            self._processes.append(context.Process(target=_serve, args=arguments))
            self._processes[-1].start()
            self._pipes.append(ours)
        self.round()  # warm-up: oneDNN chooses kernels

    def round(self, first: int | None = None) -> float:
        """Seconds per batch of the slowest process, with all or only the `first` ones running."""
        pipes = self._pipes[:first]
        for pipe in pipes:
            pipe.send("round")
        return max(_heard(pipe) for pipe in pipes)

    def close(self) -> None:
        for process_ in self._processes:
            process_.kill()
            process_.join(ROUND_S)
        self._scratch.cleanup()


def _heard(pipe: Connection) -> float:
    if not pipe.poll(ROUND_S):
        raise TimeoutError(f"no answer in {ROUND_S} s")
    return float(pipe.recv())


def _serve(
    experiment_json: str, threads: int, group: tuple[int, int, str] | None, pipe: Connection
) -> None:
    process.prepare(threads)
    if group is not None:
        _join(*group)
    experiment = from_json(experiment_json)
    epochs = fit(experiment, data.load(experiment))
    while pipe.recv() == "round":  # idle between two rounds
        pipe.send(experiment.recipe.batch / next(epochs).metrics["images_per_s"])


def _join(rank: int, count: int, folder: str) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=ROUND_S),
    )


def _difference(model: str) -> float:
    """Largest difference of a weight after one fp32 epoch in two stages and in one process."""
    experiment = _experiment(model)
    recipe = replace(experiment.recipe, batch=16, epochs=1, precision="fp32")
    experiment = replace(experiment, recipe=recipe, subset=0.02, image_size=32)
    cuts, models = _cuts(experiment), []
    images = data.load(experiment)
    for stages in (1, STAGES):
        pipeline = Pipeline(stages=stages, chunks=CHUNKS, cuts=cuts if stages > 1 else "")
        one = replace(experiment, pipeline=pipeline)
        runner = Staged(one, images, None) if stages > 1 else Alone(one, images, None)
        runner.epoch(1)
        models.append(runner.state()["model"])
        runner.close()
    alone, staged = models
    assert alone.keys() == staged.keys()
    differences = [
        float((value.float() - staged[name].float()).abs().max())  # type: ignore[attr-defined]
        for name, value in alone.items()
    ]
    return max(differences)


def _hop_ms(transport: str) -> float:
    """Milliseconds to send 4 MB from one process to another: half of a round trip."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="raybench-") as folder:
        pair = [
            context.Process(target=_hop, args=(transport, rank, folder, theirs))
            for rank in range(STAGES)
        ]
        for one in pair:
            one.start()
        try:
            return _heard(ours)
        finally:
            for one in pair:
                one.kill()
                one.join(ROUND_S)


def _hop(transport: str, rank: int, folder: str, pipe: Connection) -> None:
    process.prepare(threads=1)
    link: Link
    if transport == "gloo":
        _join(rank, STAGES, folder)
        link = GlooLink(1 - rank, 1, HOP_BYTES)
    else:
        link = SharedLink(FOLDER / Path(folder).name, 1, HOP_BYTES, lower=rank == 0)
    message = torch.ones(HOP_BYTES, dtype=torch.uint8)
    taken = []
    for _ in range(HOPS):
        link.begin()
        began = time.perf_counter()
        if rank == 0:
            link.send(message, 0)
            message = link.receive(0)
        else:
            link.send(link.receive(0), 0)
        taken.append(time.perf_counter() - began)
    if rank == 0:
        pipe.send(1000 * median(taken[HOPS // 4 :]) / 2)
        pipe.recv()  # waits to be killed, because the other end is still sending
    link.close()
