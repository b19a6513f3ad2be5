"""The kernels of a training step: TF32, fused optimizers, cuDNN's search, `torch.compile`.

fp32      stays fp32: TF32 is off, so a score on a GPU equals that of the exported fp32 graph;
          the fast path is bf16 autocast, which `recipe.precision auto` selects
optimizer fused, on CPU and GPU: one kernel for all parameters
cuDNN     tries its algorithms for each new shape and keeps the fastest; shapes stay the same
compile   on a GPU; with CUDA graphs for small models, whose kernels take less time than a launch
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from raybench.experiment import Experiment
from raybench.hardware import gpu

FUSED = True
"""SGD takes 0.34 instead of 0.48 ms on a core, AdamW 0.63 instead of 1.8 (ResNet-20)."""

SMALL = 20_000_000
"""Parameters below which a compiled model runs as CUDA graphs: ResNet-18 has 11 million. A graph
reserves memory for all activations, too much for a large model."""


def prepare(device: torch.device) -> None:
    """Applies the settings above to this process; a CPU needs none."""
    if device.type != "cuda":
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def compiles(experiment: Experiment, device: torch.device) -> bool:
    """Whether the model is compiled."""
    choice = experiment.recipe.compile
    if choice != "auto":
        return choice == "on"
    return (
        device.type == "cuda"
        and experiment.parallel.workers == 1
        and not experiment.parallel.checkpointing
        and experiment.parallel.strategy != "zero3_offload"
        and all(technique.compiles for _, technique in experiment.techniques())
    )


def ready(
    model: nn.Module, experiment: Experiment, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[..., Any], float]:
    """The module to call in place of `model` in training, and the seconds that compiling it took.

    Forward and backward passes over zeros trigger the compilation. Gradients, running statistics
    and random state are restored. If `auto` cannot compile, the result is `model` itself.
    """
    prepare(device)
    if not compiles(experiment, device):
        return model, 0.0
    began = time.perf_counter()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    compiled: Callable[..., Any] = model
    try:
        compiled = _compiled(model, experiment, device, dtype)
    except Exception as error:  # no C compiler, an operation that inductor does not know
        if experiment.recipe.compile == "on":
            raise
        reason = str(error).strip().split("\n")[0][:200]
        print(
            f"raybench: the model is not compiled, because torch.compile failed ({reason}); "
            "--recipe.compile off skips the attempt",
            file=sys.stderr,
            flush=True,
        )
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    model.train()  # resets the layers' counters
    gpu.synchronize(device)
    return compiled, time.perf_counter() - began


def _compiled(
    model: nn.Module, experiment: Experiment, device: torch.device, dtype: torch.dtype
) -> Callable[..., Any]:
    """The compiled module, after passes over zeros."""
    graphs = device.type == "cuda" and sum(p.numel() for p in model.parameters()) < SMALL
    compiled: Callable[..., Any] = torch.compile(
        model, mode="reduce-overhead" if graphs else "default"
    )
    size, batch = experiment.image_size, experiment.recipe.batch // experiment.parallel.workers
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's advice on TF32 and on small GPUs
        for _ in range(3 if graphs else 1):  # a graph is recorded in the second pass
            x = torch.zeros(batch, 3, size, size, device=device)
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = compiled(x)
            logits.float().sum().backward()
            model.zero_grad(set_to_none=True)
    return compiled
