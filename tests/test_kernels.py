"""Which models are compiled, and that compiling leaves no trace in a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from raybench import data
from raybench.experiment import Parallel
from raybench.techniques.quantize import Quantize
from raybench.training import kernels
from raybench.training.loop import fit

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_compiles_on_a_gpu_alone(tiny):
    assert kernels.compiles(tiny, CUDA)
    assert not kernels.compiles(tiny, CPU)
    assert not kernels.compiles(replace(tiny, quantize=Quantize(bits=8)), CUDA)
    assert not kernels.compiles(replace(tiny, parallel=Parallel(workers=2)), CUDA)
    for choice, expected in (("on", True), ("off", False)):
        recipe = replace(tiny.recipe, compile=choice)
        assert kernels.compiles(replace(tiny, recipe=recipe), CPU) == expected


def test_compiling_leaves_no_trace_in_a_run(tiny, monkeypatch):
    passes = []

    def compiled(model: nn.Module, mode: str) -> nn.Module:
        passes.append(mode)
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    images, rows = data.load(tiny), {}
    for choice in ("on", "off"):
        experiment = replace(tiny, recipe=replace(tiny.recipe, compile=choice))
        rows[choice] = [epoch.metrics for epoch in fit(experiment, images)]
    assert passes == ["default"]
    for one, other in zip(rows["on"], rows["off"], strict=True):
        assert one["loss"] == other["loss"]
        assert one["accuracy"] == other["accuracy"]
    assert rows["on"][-1]["compile_s"] > 0
    assert rows["off"][-1]["compile_s"] == 0


def test_auto_goes_on_where_compiling_fails(tiny, monkeypatch, capsys):
    def compiled(model: nn.Module, mode: str) -> Callable[..., object]:
        def fails(x: torch.Tensor) -> torch.Tensor:
            model(x).sum().backward()  # leaves gradients and running statistics
            raise RuntimeError("no C compiler\nmore")

        return fails

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(kernels, "compiles", lambda experiment, device: True)
    images = data.load(tiny)
    rows = [epoch.metrics for epoch in fit(tiny, images)]
    assert "not compiled, because torch.compile failed (no C compiler)" in capsys.readouterr().err
    monkeypatch.undo()
    for one, other in zip(rows, fit(tiny, images), strict=True):
        assert one["loss"] == other.metrics["loss"]
        assert one["accuracy"] == other.metrics["accuracy"]


def test_on_is_an_error_where_compiling_fails(tiny, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, mode: lambda x: 1 / 0)
    experiment = replace(tiny, recipe=replace(tiny.recipe, compile="on"))
    with pytest.raises(ZeroDivisionError):
        next(fit(experiment, data.load(tiny)))


def test_a_gpu_gets_no_tf32():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    try:
        cudnn.allow_tf32 = True
        kernels.prepare(CPU)
        assert cudnn.allow_tf32
        kernels.prepare(CUDA)
        assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (False, False, True)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimizers_are_fused(tiny, kind):
    from raybench.training.optim import build_optimizer

    optimizer = build_optimizer(nn.Linear(2, 2), replace(tiny.recipe, optimizer=kind))
    assert all(group["fused"] for group in optimizer.param_groups)
