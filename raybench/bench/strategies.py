"""The cost of each parallel strategy: ViT-S/16 at 224 pixels on two workers of one core each."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from raybench import data, parallel
from raybench.experiment import Experiment, Parallel, from_json
from raybench.models import avoid_slow_bf16, build
from raybench.parallel.memory import HELD, Activations, held, theory
from raybench.training import process
from raybench.training.measure import cpu_dtype, cpu_features, processor_vendor
from raybench.training.optim import build_optimizer
from trainers.strategies import base

WORKERS, EACH, CLASSES = 2, 6, 10  # EACH: images in a worker's timed step
STEPS, IMAGES = 20, 2  # in the comparison of losses: steps, and images of all workers
ROUNDS, WARM = 5, 1
DEADLINE_S = 180  # for one step, for the twenty steps, and for a collective
EXACT = ("ddp", "zero1", "zero2", "zero3", "zero3_offload")
LOSSY = ("bf16_gradients", "powersgd")

claims = {
    **{f"memory_error_{name}": "at most 0.01" for name in (*EXACT, *LOSSY)},
    **{f"loss_difference_{name}": "at most 0.0001" for name in EXACT},
    **{f"loss_difference_{name}": "gradients are rounded" for name in LOSSY},
    "throughput_ddp_bf16": "reach 1.9 where the CPU is faster in bf16",
    "throughput_zero1": "reach 0.97",
    "throughput_zero2": "reach 0.93",
    "throughput_zero3": "reach 0.83",
    "optimizer_share_zero1": "0.5, to 1 %",
    "states_share_zero3": "0.5, to 1 %",
    "scaling_2": "reach 1.85",
    "scaling_2_apart": "two that exchange nothing: what the machine itself gives",
}


def measure() -> dict[str, float]:
    """Ratios of samples per second to those of `ddp` in fp32, medians of interleaved rounds.

    `memory_error_S` is the largest relative difference between counted and theoretical bytes, over
    kinds of memory and workers. `loss_difference_S` is the absolute difference of the loss after
    twenty steps from that of one process with the whole batch. `scaling_2` is the samples per
    second of two workers over those of one with the same share; `scaling_2_apart` is the same for
    two independent processes at once.
    """
    sides = {name: _experiment(name, "fp32") for name in (*EXACT, *LOSSY)}
    if cpu_dtype(cpu_features(), processor_vendor())[0] == torch.bfloat16:
        sides["ddp_bf16"] = _experiment("ddp", "bf16")
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(Path(folder))
        try:
            return _losses(pair, sides) | _memory(pair, sides) | _throughput(pair, sides)
        finally:
            pair.close()


def _experiment(strategy: Any, precision: Literal["fp32", "bf16"]) -> Experiment:
    return replace(
        base,
        model="vit_small_patch16_224",
        data="digits",
        recipe=replace(base.recipe, batch=WORKERS * EACH, precision=precision),
        parallel=Parallel(workers=WORKERS, strategy=strategy),
    )


def _losses(pair: Pair, sides: dict[str, Experiment]) -> dict[str, float]:
    """Opens all sides and a single-process model, and runs the twenty steps of the fp32 sides."""
    pair.ask("open", "alone", sides["ddp"].to_json())
    expected = pair.ask("losses", "alone")[0]
    figures = {}
    for name, experiment in sides.items():
        pair.ask("open", name, experiment.to_json())
        if name != "ddp_bf16":
            figures[f"loss_difference_{name}"] = abs(pair.ask("losses", name)[0] - expected)
            _say(f"{name}: loss differs by {figures[f'loss_difference_{name}']:.1e}")
    return figures


def _memory(pair: Pair, sides: dict[str, Experiment]) -> dict[str, float]:
    figures, counts = {}, {}
    for name in (*EXACT, *LOSSY):
        with torch.device("meta"):
            plain = build(sides[name].model, classes=CLASSES, image_size=224)
        wanted = theory(plain, sides[name])
        counts[name] = pair.ask("memory", name)
        figures[f"memory_error_{name}"] = max(
            abs(worker[kind] - whole) / max(whole, 1)
            for worker in counts[name]
            for kind, whole in wanted.items()
            if whole is not None and (whole or worker[kind])
        )
        _say(f"{name}: {counts[name][0]}")
    figures["optimizer_share_zero1"] = _share(counts, "zero1", ("optimizer_bytes",))
    figures["states_share_zero3"] = _share(counts, "zero3", HELD)
    return figures


def _share(counts: dict[str, Any], strategy: str, kinds: tuple[str, ...]) -> float:
    """Bytes on the worker that holds most, over those of ddp."""
    most = max(sum(worker[kind] for kind in kinds) for worker in counts[strategy])
    return float(most / sum(counts["ddp"][0][kind] for kind in kinds))


def _throughput(pair: Pair, sides: dict[str, Experiment]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in ("alone", "apart", *sides)}
    pair.ask("open", "apart", sides["ddp"].to_json())
    for number in range(WARM + ROUNDS):
        names = [*seconds]
        first = number % len(names)  # each round starts with a different side
        for name in names[first:] + names[:first]:
            seconds[name].append(max(pair.ask("step", name)))
        _say(f"round {number} of {ROUNDS}: ddp {seconds['ddp'][-1]:.2f} s")
    timed = {name: rounds[WARM:] for name, rounds in seconds.items()}
    figures: dict[str, float] = {}
    for name in sides:
        ratios = [d / side for d, side in zip(timed["ddp"], timed[name], strict=True)]
        if name != "ddp":
            figures[f"throughput_{name}"] = median(ratios)
            figures[f"throughput_{name}_min"] = min(ratios)
            figures[f"throughput_{name}_max"] = max(ratios)
    figures["samples_per_s_ddp"] = WORKERS * EACH / median(timed["ddp"])
    for name, two in {"scaling_2": "ddp", "scaling_2_apart": "apart"}.items():
        ratios = [WORKERS * a / d for a, d in zip(timed["alone"], timed[two], strict=True)]
        figures[name] = median(ratios)
        figures[f"{name}_min"], figures[f"{name}_max"] = min(ratios), max(ratios)
    figures["rounds"] = ROUNDS
    return figures


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Pair:
    """Two processes of one gloo group, which run the same commands at the same time."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(WORKERS):
            here, there = context.Pipe()
            worker = context.Process(target=_serve, args=(rank, str(folder), there))
            worker.start()
            self._pipes.append(here)
            self._processes.append(worker)

    def ask(self, *words: str) -> list[Any]:
        """The answers of both processes."""
        for pipe in self._pipes:
            pipe.send(words)
        answers = []
        for pipe in self._pipes:
            if not pipe.poll(DEADLINE_S):
                raise TimeoutError(f"no answer to {words[:2]} in {DEADLINE_S} s")
            answers.append(pipe.recv())
        return answers

    def close(self) -> None:
        for worker in self._processes:
            worker.kill()
            worker.join(DEADLINE_S)


class Side:
    """One model in one worker. `alone` and `apart` are models without a strategy: `alone` runs only
    in the first worker, `apart` in each worker independently."""

    def __init__(self, name: str, experiment: Experiment) -> None:
        self.name, self.plain, recipe = name, name in ("alone", "apart"), experiment.recipe
        self.bf16 = recipe.precision == "bf16"
        self.replicas = parallel.replicas(experiment.parallel)
        torch.manual_seed(0)
        self.model = build(experiment.model, classes=CLASSES, image_size=224)
        if self.bf16:
            avoid_slow_bf16(self.model)
        if self.plain:
            self.wrapped, self.optimizer = self.model, build_optimizer(self.model, recipe)
        else:
            self.wrapped = self.replicas.wrap(self.model)
            self.optimizer = self.replicas.spread(build_optimizer(self.wrapped, recipe))

    @property
    def idle(self) -> bool:
        return self.name == "alone" and self.replicas.rank > 0

    def step(self, x: Tensor, y: Tensor) -> float:
        """The loss of one training step over the whole batch."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.wrapped(x)
        loss = F.cross_entropy(logits.float(), y)
        loss.backward()
        self.optimizer.step()
        if self.plain:
            return loss.item()
        return float(self.replicas.total(loss.detach().clone()) / self.replicas.workers)


def _serve(rank: int, folder: str, pipe: Connection) -> None:
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})  # gloo's threads stay there as well
    process.prepare(threads=1)
    warnings.simplefilter("ignore")  # from DDP, about a class token's gradient that is a slice
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=WORKERS,
        timeout=timedelta(seconds=DEADLINE_S),
    )
    images, labels = _images(STEPS * IMAGES)
    sides: dict[str, Side] = {}
    while True:
        word, name, *more = pipe.recv()
        if word == "open":
            sides[name] = Side(name, from_json(more[0]))
            pipe.send(None)
            continue
        side = sides[name]
        if side.idle:
            pipe.send(0.0)
        elif word == "losses":
            pipe.send(_twenty(side, images, labels))
        elif word == "step":
            pipe.send(_timed(side, images, labels))
        else:
            activations = Activations(images)
            with activations:
                side.wrapped(images[:EACH])
            counted = held(side.model, side.optimizer, side.replicas.beside())
            pipe.send(counted | {"activations_bytes": activations.bytes})


def _images(count: int) -> tuple[Tensor, Tensor]:
    """Digits, enlarged to 224 pixels."""
    small = replace(base, data="digits", image_size=32)
    recipe = replace(small.recipe, batch=count)
    x, y = next(iter(data.batches(data.load(small), recipe, seed=0, epoch=1)))
    return F.interpolate(x, size=224, mode="bilinear"), y


def _twenty(side: Side, images: Tensor, labels: Tensor) -> float:
    """The loss at the last of the twenty steps."""
    share = IMAGES if side.plain else IMAGES // WORKERS
    offset = 0 if side.plain else side.replicas.rank * share
    for first in range(offset, STEPS * IMAGES, IMAGES):
        mine = slice(first, first + share)
        loss = side.step(images[mine], labels[mine])
    return loss


def _timed(side: Side, images: Tensor, labels: Tensor) -> float:
    if side.name != "alone":
        dist.barrier()
    began = time.perf_counter()
    side.step(images[:EACH], labels[:EACH])
    return time.perf_counter() - began
