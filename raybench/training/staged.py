"""The training loop of one stage, for its part of the model.

Every stage builds the whole model from the same seed and keeps its own blocks. Every stage also
walks through the same batches; the first stage uses the images and the last one the labels, so no
image or label is ever sent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn

from raybench.data import Images, batches
from raybench.experiment import Experiment
from raybench.hardware import gpu
from raybench.models.blocks import blocks, names
from raybench.parallel.pipeline import balance, schedule
from raybench.parallel.pipeline.boundary import Boundary, Form, forms, message_bytes
from raybench.parallel.pipeline.part import of_part, part_of
from raybench.parallel.pipeline.stage import Stage, State
from raybench.parallel.pipeline.transport import Link
from raybench.techniques import Memory, Progress
from raybench.training import measure
from raybench.training.first_model import laid_out
from raybench.training.optim import build_optimizer, learning_rate
from raybench.training.runner import LOOK_EVERY, Diverged

Connect = Callable[[int, int], Link]
"""Makes a link to a neighbour, from its rank and the bytes of a message in either direction."""


@dataclass(frozen=True)
class Report:
    """A stage's report on an epoch."""

    loss: float  # mean over the epoch in the last stage; NaN in the others
    lr: float
    wall_s: float  # of the epoch
    seconds: dict[str, float]  # by kind of action, and "wait"
    cpu_s: float
    sent_bytes: int
    first_step: float  # when it began, in seconds since 1970
    tensors: dict[str, int]  # the codecs' counts
    peak_memory_bytes: int

    @property
    def busy_s(self) -> float:
        return sum(spent for kind, spent in self.seconds.items() if kind != "wait")


class StageRun:
    """One stage's part of an experiment.

    Args:
        cuts: first block of every stage but the first.
        connect: makes the links; None for a single stage.
    """

    def __init__(
        self,
        experiment: Experiment,
        images: Images,
        rank: int,
        cuts: list[int],
        connect: Connect | None = None,
    ) -> None:
        self.experiment, self.images, self.rank = experiment, images, rank
        self.stages = len(cuts) + 1
        self._memories: dict[str, Memory] = {name: {} for name, _ in experiment.techniques()}
        self.device = measure.pick_device()
        recipe, pipeline = experiment.recipe, experiment.pipeline
        dtype, _ = measure.pick_dtype(recipe.precision, self.device)
        model = laid_out(experiment, images.classes, self.device)
        every = blocks(model)
        between = forms(every, experiment.image_size, recipe.batch // pipeline.chunks, dtype)
        begin, end = balance.bounds(cuts, len(every))[rank]
        stage_blocks = every[begin:end]
        self.boundaries: list[Boundary] = []
        self._generator = torch.Generator(self.device)

        def boundary(peer: int, form: Form) -> Boundary | None:
            if not 0 <= peer < self.stages:
                return None
            assert connect is not None
            size = message_bytes(form, pipeline.bits)
            # Activations are rounded to the nearest, gradients stochastically. This keeps the
            # gradients' mean; otherwise a sum over many small ones would be lost.
            generator = self._generator if peer < rank else None
            made = Boundary(connect(peer, size), form, pipeline.bits, generator)
            self.boundaries.append(made)
            return made

        named = names(model, stage_blocks)
        self.stage = Stage(
            stage_blocks,
            named,
            recipe,
            schedule.actions(pipeline.schedule, self.stages, pipeline.chunks)[rank],
            build_optimizer,
            first=begin,
            chunks=pipeline.chunks,
            mode=pipeline.batch_norm,
            dtype=dtype,
            checkpointing=experiment.parallel.checkpointing,
            before=boundary(rank - 1, between[begin - 1]),
            after=boundary(rank + 1, between[end - 1]),
        )
        # Hooks find the stage's own layers under their names in the whole model.
        self.part = part_of(model, named.values())

    def epoch(self, number: int) -> Report:
        """One epoch of training.

        Raises:
            Diverged: at the first step whose loss or whose sent tensor is not finite.
            PeerLost: a neighbour is gone.
        """
        experiment, stage, recipe = self.experiment, self.stage, self.experiment.recipe
        seed = experiment.seed * 1_000_003 + number * 1009
        self._generator.manual_seed(seed * 31 + self.rank)
        for boundary in self.boundaries:
            boundary.begin_epoch()
        stage.seconds = dict.fromkeys(stage.seconds, 0.0)
        steps = len(self.images.train) // recipe.batch
        progress = Progress((number - 1) * steps, recipe.epochs * steps, steps)
        for name, technique in experiment.techniques():
            changed = technique.restructure(self.part, progress, self._memories[name])
            assert not changed, f"{name} changes layers, but runs in a pipeline"
        losses, rate = torch.zeros((), device=self.device), 0.0
        before, cpu = time.perf_counter(), time.process_time()
        started = time.time()
        walk = batches(self.images, recipe, seed=experiment.seed, epoch=number, device=self.device)
        for step, (x, y) in enumerate(walk):
            rate = learning_rate(recipe, progress.share)
            try:
                loss = stage.step(
                    x if stage.before is None else None,
                    y if stage.after is None else None,
                    rate,
                    seed * 65_537 + step,
                )
            except FloatingPointError as error:
                raise Diverged(f"{error}, in step {step + 1} of epoch {number}") from error
            progress = progress._replace(step=progress.step + 1)
            for name, technique in experiment.techniques():
                memory = self._memories[name]
                technique.after_step(self.part, progress, memory, stage.optimizer)
            if loss is not None:
                losses += loss
                # Reading the sum waits for a GPU.
                look = self.device.type == "cpu" or (step + 1) % LOOK_EVERY == 0
                if look and not math.isfinite(total := gpu.read(losses)):
                    raise Diverged(f"the loss is {total} in step {step + 1} of epoch {number}")
        return Report(
            loss=gpu.read(losses) / steps if stage.after is None else math.nan,
            lr=rate,
            wall_s=time.perf_counter() - before,
            seconds=dict(stage.seconds),
            cpu_s=time.process_time() - cpu,
            sent_bytes=sum(boundary.sent_bytes for boundary in self.boundaries),
            first_step=started,
            tensors=self._tensors(),
            peak_memory_bytes=measure.peak_memory_bytes(self.device),
        )

    def state(self) -> State:
        return self.stage.state() | {"memories": dict(self._memories)}

    def load(self, state: State) -> None:
        """Resumes from this stage's state, or from that of all stages together."""
        self.stage.load(state)
        for name, memory in state["memories"].items():
            entries = of_part(cast(Memory, memory), self.stage.names.values(), state["model"])
            self._memories[name] = {key: value.clone() for key, value in entries.items()}

    def close(self) -> None:
        """Closes the links to the neighbours."""
        for boundary in self.boundaries:
            boundary.link.close()

    def _tensors(self) -> dict[str, int]:
        seen: dict[str, int] = {}
        for boundary in self.boundaries:
            for name, count in vars(boundary.codec.health).items():
                seen[name] = seen.get(name, 0) + count
        return seen


def choose_cuts(experiment: Experiment, images: Images) -> list[int]:
    """Where to cut the model: as given, or by the measured times of its blocks on this machine.

    The blocks are timed at the chunk size of the run. Then the stages are timed as a whole. If the
    slowest one is more than a tenth above the mean, the blocks' times are scaled to the measured
    times of their stages, and the model is cut again.

    Raises:
        ValueError: the model is not a list of blocks or has too few, or the given cuts do not fit.
    """
    pipeline, recipe, device = experiment.pipeline, experiment.recipe, measure.pick_device()
    model = laid_out(experiment, images.classes, device)
    every = blocks(model)
    if pipeline.cuts:
        return balance.from_text(pipeline.cuts, len(every), pipeline.stages)
    balance.check(len(every), pipeline.stages)
    if pipeline.stages == 1:
        return []
    dtype, _ = measure.pick_dtype(recipe.precision, device)
    x, _ = next(batches(images, recipe, seed=experiment.seed, epoch=1, device=device))
    x = x.chunk(pipeline.chunks)[0]
    costs = balance.measure(every, x, dtype=dtype).blocks
    cuts = balance.partition(costs, pipeline.stages)
    for _ in range(TRIES):
        stages = [nn.Sequential(*every[a:b]) for a, b in balance.bounds(cuts, len(every))]
        stage_seconds = balance.measure(stages, x, dtype=dtype).blocks
        if balance.imbalance(stage_seconds) <= TOLERATED:
            break
        expected = balance.stage_costs(costs, cuts)
        for (a, b), true, sum_of in zip(
            balance.bounds(cuts, len(every)), stage_seconds, expected, strict=True
        ):
            costs[a:b] = [cost * true / sum_of for cost in costs[a:b]]
        better = balance.partition(costs, pipeline.stages)
        if better == cuts:
            break
        cuts = better
    return cuts


TRIES = 3
TOLERATED = 1.1  # the slowest stage over the mean


def merged(states: list[State]) -> State:
    """The state of all stages together."""
    whole: dict[str, Any] = {"model": {}, "optimizer": {}, "memories": {}}
    for state in states:
        for part in ("model", "optimizer"):
            whole[part] |= state[part]
        for name, memory in state["memories"].items():
            whole["memories"][name] = whole["memories"].get(name, {}) | cast(Memory, memory)
    return whole


class Stages(Protocol):
    """Trains an experiment's stages, epoch by epoch."""

    restarts: int  # restarts of stages that died
    cuts: list[int]

    def epoch(self, number: int) -> list[Report]:
        """Trains for an epoch; returns the report of each stage."""

    def state(self) -> State:
        """The whole model and optimizer after the last epoch."""

    def close(self) -> None: ...


MakeStages = Callable[[Experiment, Images, "State | None"], Stages]
"""Starts an experiment's stages, from the start or from the state of all stages together."""


class Alone:
    """All blocks as one stage in this process, the chunks one after another."""

    restarts = 0

    def __init__(self, experiment: Experiment, images: Images, state: State | None) -> None:
        self.cuts: list[int] = []
        self._run = StageRun(experiment, images, 0, self.cuts)
        if state is not None:
            self._run.load(state)

    def epoch(self, number: int) -> list[Report]:
        return [self._run.epoch(number)]

    def state(self) -> State:
        return self._run.state()

    def close(self) -> None:
        self._run.close()
