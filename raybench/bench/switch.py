"""The cost of experts: a ViT's whole training step with 0, 8, 32 and 64 experts."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from statistics import median
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybench import data
from raybench.experiment import Experiment, from_json
from raybench.models import avoid_slow_bf16, build
from raybench.techniques import Batch
from raybench.techniques.layers.experts import Experts
from raybench.techniques.switch import Switch, mixtures
from raybench.training import process
from raybench.training.measure import count_parameters
from raybench.training.optim import build_optimizer
from trainers.switch_vit import base

Precision = Literal["bf16", "fp32"]

BATCH = 256
ROUNDS: dict[Precision, int] = {"bf16": 3, "fp32": 1}
WARM: dict[Precision, int] = {"bf16": 3, "fp32": 2}
"""Untimed warm-up steps: oneDNN chooses kernels, the optimizer allocates its state."""
STEP_S = 180  # deadline of one step
TOKENS = 16_384  # tokens for the single feed-forward
STATE_BYTES = 16  # per parameter: value, gradient and AdamW's two moments, in fp32

CLAIMS = {
    "step_ratio_8": "",
    "step_ratio_32": "at most 1.15; reference project 5.84",
    "step_ratio_64": "at most 1.25; reference project 11.06",
    "ratio_64_to_8": "at most 1.2",
    "memory_ratio_64": "at most 1.1",
    "loop_ratio_64": "experts one after another",
    "ffn_ratio_64_16k": "one feed-forward alone",
}
claims = CLAIMS | {f"{name}_fp32": claim for name, claim in CLAIMS.items()}


def measure() -> dict[str, float]:
    """Ratios to the dense model, medians of interleaved rounds; in bf16, with `_fp32` in fp32.

    `step_ratio_E` and `loop_ratio_64` are for whole training steps of the family's base, the latter
    with a loop over the experts. `memory_ratio_64` is the growth of peak memory over the dense
    model's, divided by the bytes of the experts' parameters, gradients and optimizer state.
    `ffn_ratio_64_16k` is for one feed-forward with 16,384 tokens, forward and backward.
    """
    figures: dict[str, float] = {}
    for precision, rounds in ROUNDS.items():
        suffix = "" if precision == "bf16" else "_fp32"
        ratios = _steps(precision, rounds) | _feed_forward(precision, rounds + 2)
        figures |= {name + suffix: value for name, value in ratios.items()}
    return figures


def _steps(precision: Precision, rounds: int) -> dict[str, float]:
    recipe = replace(base.recipe, batch=BATCH, precision=precision)
    experiment = replace(base, recipe=recipe)
    figures: dict[str, float] = {}
    warm = WARM[precision]
    dense = Steps(experiment, loop=False, warm=warm)
    # One after another, because four such models would not fit into a laptop's memory.
    for experts in (8, 32, 64):
        switch = Switch(experts=experts)
        side = Steps(replace(experiment, switch=switch), loop=False, warm=warm)
        figures |= _against(dense, side, f"step_ratio_{experts}", rounds)
        if experts == 64:
            above = side.peak_bytes() - dense.peak_bytes()
            figures["memory_ratio_64"] = above / (side.expert_parameters * STATE_BYTES)
        side.close()
    figures["ratio_64_to_8"] = figures["step_ratio_64"] / figures["step_ratio_8"]
    side = Steps(replace(experiment, switch=Switch(experts=64)), loop=True, warm=warm)
    figures["loop_ratio_64"] = _against(dense, side, "loop", min(2, rounds))["loop"]
    side.close()
    dense.close()
    return figures


def _against(dense: Steps, side: Steps, name: str, rounds: int) -> dict[str, float]:
    """Seconds of the side over those of the dense model: the median of ratios per round."""
    ratios = []
    for number in range(1, rounds + 1):
        before = dense.second_step()
        ratios.append(side.second_step() / before)
        line = f"{name}, round {number} of {rounds}: {ratios[-1]:.2f}"
        print(line, file=sys.stderr, flush=True)
    return {name: median(ratios), f"{name}_min": min(ratios), f"{name}_max": max(ratios)}


class Steps:
    """Training steps of one model in a separate process, so that its peak memory is its own."""

    def __init__(self, experiment: Experiment, *, loop: bool, warm: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        arguments = (experiment.to_json(), loop, there)
        self._process = context.Process(target=_serve, args=arguments)
        self._process.start()
        self.expert_parameters = int(self._hear())
        for _ in range(warm):
            self.step()

    def step(self) -> float:
        """Seconds of one more training step."""
        self._pipe.send("step")
        return self._hear()

    def second_step(self) -> float:
        """Seconds of a step that directly follows another one, as in training."""
        self.step()
        return self.step()

    def peak_bytes(self) -> float:
        self._pipe.send("peak")
        return self._hear()

    def close(self) -> None:
        self._process.kill()
        self._process.join(STEP_S)

    def _hear(self) -> float:
        if not self._pipe.poll(STEP_S):
            raise TimeoutError(f"no answer in {STEP_S} s")
        return float(self._pipe.recv())


def _serve(experiment_json: str, loop: bool, pipe: Connection) -> None:
    """The same steps as `fit`, on one batch of real images."""
    process.prepare(threads=1)
    experiment = from_json(experiment_json)
    images = data.load(experiment)
    model = build(experiment.model, classes=images.classes, image_size=experiment.image_size)
    for _, technique in experiment.techniques():
        technique.reshape(model)
    pipe.send(sum(count_parameters(mixture.experts) for mixture in mixtures(model)))
    if loop:
        for mixture in mixtures(model):
            assert isinstance(mixture.experts, Experts)
            mixture.experts = Looped(mixture.experts)
    bf16 = experiment.recipe.precision == "bf16"
    if bf16:
        avoid_slow_bf16(model)
    optimizer = build_optimizer(model, experiment.recipe)
    x, y = next(iter(data.batches(images, experiment.recipe, seed=0, epoch=1)))
    while True:
        if pipe.recv() == "peak":
            pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            continue
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(x)
        loss: Tensor = F.cross_entropy(logits.float(), y)
        for _, technique in experiment.techniques():
            loss = loss + technique.penalty(model, Batch(x, y, logits), {})
        loss.backward()
        optimizer.step()
        loss.item()
        pipe.send(time.perf_counter() - began)


class Looped(nn.Module):
    """The simple implementation: every expert is a module, and they run one after another."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        _, hidden, width = experts.weight1.shape
        self.each = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            for _ in range(len(experts))
        )

    def forward(self, x_ND: Tensor, expert_N: Tensor) -> Tensor:
        y_ND = torch.zeros_like(x_ND)
        bf16 = x_ND.dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for number, expert in enumerate(self.each):
                chosen = (expert_N == number).nonzero().squeeze(1)
                y_ND[chosen] = expert(x_ND[chosen])
        return y_ND


def _feed_forward(precision: Precision, rounds: int) -> dict[str, float]:
    """One feed-forward, dense and with 64 evenly loaded experts."""
    process.prepare(threads=1)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    dense = build(base.model, classes=10, image_size=32).get_submodule("blocks.0.mlp")
    experts = Experts(dense, 64)
    width = experts.weight1.shape[2]
    x = torch.randn(TOKENS, width, dtype=dtype, requires_grad=True)
    choice = torch.randint(64, (TOKENS,))
    sides: dict[str, Callable[[], Tensor]] = {
        "dense": lambda: dense(x),
        "experts": lambda: experts(x, choice),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, forward in sides.items():
            for module in (dense, experts):
                module.zero_grad(set_to_none=True)
            began = time.perf_counter()
            mixed = name == "dense" and precision == "bf16"
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                y = forward()
            y.backward(torch.ones_like(y))
            if number:
                seconds[name].append(time.perf_counter() - began)
    ratios = [a / b for a, b in zip(seconds["experts"], seconds["dense"], strict=True)]
    return {"ffn_ratio_64_16k": median(ratios)}
