"""The shipped file: its compression, the time to read it, and the latency of its int8 graph."""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from raybench import artefact, data
from raybench.artefact import latency, onnx_graph
from raybench.artefact.breakdown import totals
from raybench.experiment import Experiment
from raybench.models import build
from raybench.techniques.prune import Prune
from raybench.techniques.prune_channels import PruneChannels
from raybench.techniques.quantize import Quantize
from raybench.training import process
from raybench.training.loop import fit
from trainers.pruning import base

FILES = {"60_8": (0.6, 8), "80_4": (0.8, 4), "90_4": (0.9, 4)}  # sparsity, bits
WIDE = (0.8, 4)
CUT = PruneChannels(ratio=0.25, at=1.0)
EPOCHS = {"resnet20": 16, "resnet20x2_b": 3}  # of dense training on digits, a minute in all
ROUNDS = 7
RUNS = {1: 50, 64: 3}  # by batch size: runs of each side in a round
DECODES = 20

claims = {
    "size_ratio_60_8": "reach 8",
    "size_ratio_80_4": "reach 22",
    "size_ratio_90_4": "reach 36",
    "latency_b1_vs_ort_fp32": "reach 2",
    "latency_b1_vs_eager": "reach 8",
    "wide_latency_b1": "at most 1.1",
    "wide_latency_b64": "at most 1.1",
    "wide_bytes": "at most 0.3",
    "cut_latency_b1": "at most 1.1",
    "cut_latency_b64": "at most 1.1",
    "cut_bytes": "at most 0.3",
    "decode_ms": "at most 100",
}


def measure() -> dict[str, float]:
    """Sizes of files that are written and read back, and latencies of graphs, on one thread.

    ResNet-20 is trained on digits without pruning, so that its weights have a realistic histogram.
    Then it is pruned by magnitude over all layers and rounded, without retraining, because its
    accuracy does not matter here.
    `size_ratio_S_B` is torch.save of ResNet-20 in fp32 over the packed file with S % sparsity and B
    bits; `entropy_ratio_S_B` is that file over the zeroth-order entropy. `latency_bN_vs_…` is the
    other side's time over that of int8 at batch N, in thread time, median of interleaved rounds;
    `…_wall` is the same in wall time. `wide_latency_bN` and `wide_bytes` are those of a ResNet-20
    twice as wide, sparse and int8, over the fp32 graph and the torch.save of ResNet-20; `cut_…` is
    the same with a quarter of its channels cut.
    """
    process.prepare(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder))


def _measure(folder: Path) -> dict[str, float]:
    figures: dict[str, float] = {}
    experiment, dense = _trained("resnet20", folder)
    wide_experiment, wide_dense = _trained("resnet20x2_b", folder)
    fp32_bytes = _torch_save_bytes(folder)
    models: dict[str, nn.Module] = {}
    for name, (sparsity, bits) in FILES.items():
        path = folder / f"{name}.packed"
        models[name] = _stored(dense, experiment, sparsity, bits, path)
        figures[f"size_ratio_{name}"] = fp32_bytes / path.stat().st_size
        figures[f"entropy_ratio_{name}"] = totals(path)["ratio_entropy"] or 0.0
    figures |= _decode_ms(models["80_4"], folder / "80_4.packed")
    wider = {"wide": wide_experiment, "cut": replace(wide_experiment, prune_channels=CUT)}
    for name, of in wider.items():
        path = folder / f"{name}.packed"
        models[name] = _stored(wide_dense, of, *WIDE, path)
        figures[f"{name}_bytes"] = path.stat().st_size / fp32_bytes
    _say(f"files: {', '.join(f'{k} {v:.3g}' for k, v in figures.items())}")

    images = data.load(experiment)
    graphs = {
        name: onnx_graph.fp32_graph(models[name], experiment.image_size)
        for name in ("60_8", *wider)
    }
    int8 = {
        name: onnx_graph.int8_graph(models[name], fp32, onnx_graph.calibration_batches(images))
        for name, fp32 in graphs.items()
    }
    sides = latency.sides(int8["60_8"], graphs["60_8"], models["60_8"])
    for name in wider:
        sides[name] = onnx_graph.Bound(int8[name])
    for batch, runs in RUNS.items():
        figures |= _latencies(sides, experiment.image_size, batch, runs)
    return figures | {"fp32_bytes": fp32_bytes, "rounds": ROUNDS}


def _trained(name: str, folder: Path) -> tuple[Experiment, nn.Module]:
    recipe = replace(base.recipe, epochs=EPOCHS[name])
    experiment = replace(base, model=name, data="digits", recipe=recipe)
    path = folder / f"{name}.safetensors"
    for epoch in fit(experiment, data.load(experiment), store=path):
        if epoch.last:
            _say(f"{name} on digits: {epoch.metrics['test_accuracy']:.1%} of the test images")
    return experiment, artefact.load(path)


def _stored(
    dense: nn.Module, experiment: Experiment, sparsity: float, bits: int, path: Path
) -> nn.Module:
    """The model read back from its packed file."""
    prune = Prune(final_sparsity=sparsity, schedule="constant", begin=1.0)
    experiment = replace(experiment, prune=prune, quantize=Quantize(bits=bits, begin=1.0))
    model = copy.deepcopy(dense)
    for _, technique in experiment.techniques():
        technique.reshape(model)
    for _, technique in experiment.techniques():
        technique.finish(model, {})
    artefact.save(model, experiment, 10, path)
    back = artefact.load(path)
    x_BCHW = torch.randn(8, 3, experiment.image_size, experiment.image_size)
    with torch.inference_mode():
        assert torch.equal(back(x_BCHW), model.eval()(x_BCHW))
    return back


def _torch_save_bytes(folder: Path) -> int:
    """The torch.save size of the plain network in fp32."""
    path = folder / "resnet20.pt"
    torch.save(build("resnet20", classes=10, image_size=32).state_dict(), path)
    return path.stat().st_size


def _decode_ms(model: nn.Module, path: Path) -> dict[str, float]:
    """Time to read the file into the model, including checks."""
    seconds = []
    for _ in range(DECODES):
        began = time.perf_counter()
        artefact.restore(model, path)
        seconds.append(time.perf_counter() - began)
    low, middle, high = (1e3 * np.percentile(seconds, (0, 50, 100))).tolist()
    return {"decode_ms": middle, "decode_ms_min": low, "decode_ms_max": high}


def _latencies(
    sides: dict[str, Callable[[Tensor], object]], size: int, batch: int, runs: int
) -> dict[str, float]:
    rounds = [
        latency.measure(
            sides, torch.randn(batch, 3, size, size), runs=runs, warm_up=max(2, runs // 3)
        )
        for _ in range(ROUNDS)
    ]
    figures: dict[str, float] = {}
    ratios = {
        f"latency_b{batch}_vs_ort_fp32": ("ort_fp32", "int8"),
        f"latency_b{batch}_vs_eager": ("eager", "int8"),
        f"wide_latency_b{batch}": ("wide", "ort_fp32"),
        f"cut_latency_b{batch}": ("cut", "ort_fp32"),
    }
    for name, (over, under) in ratios.items():
        thread = [latency.ratio(r[over].thread_ms, r[under].thread_ms)[0] for r in rounds]
        wall = [latency.ratio(r[over].wall_ms, r[under].wall_ms)[0] for r in rounds]
        figures |= {name: median(thread), f"{name}_min": min(thread), f"{name}_max": max(thread)}
        figures[f"{name}_wall"] = median(wall)
        _, low, high = latency.ratio(
            np.concatenate([r[over].thread_ms for r in rounds]),
            np.concatenate([r[under].thread_ms for r in rounds]),
        )
        figures |= {f"{name}_p2.5": low, f"{name}_p97.5": high}
        _say(f"{name}: {figures[name]:.2f}")
    for side in sides:
        whole = latency.Latency(
            wall_ms=np.concatenate([r[side].wall_ms for r in rounds]),
            thread_ms=np.concatenate([r[side].thread_ms for r in rounds]),
        )
        figures |= {f"{side}_b{batch}_{name}": ms for name, ms in whole.summary().items()}
    return figures


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
