"""python -m raybench.export: writes a trained model as a packed file and as an ONNX graph."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import tyro
from torch import nn

from raybench import artefact, data, parallel
from raybench.arguments.parse import parse as command_line
from raybench.arguments.paths import require_new_file
from raybench.artefact import onnx_graph, packed, served_graph
from raybench.artefact.breakdown import breakdown, totals
from raybench.data import Inputs
from raybench.experiment import Experiment, Parallel
from raybench.reports import text
from raybench.results.remote import fetched
from raybench.results.remote.address import is_remote
from raybench.training import measure
from raybench.training.score import evaluate

SUFFIX = ".packed"


@dataclass(frozen=True, kw_only=True)
class Export:
    """Packs a stored model, reads it back, and prints the bytes of each tensor.

    Examples:

      python -m raybench.export results/pruning/models/7.safetensors
      python -m raybench.export resnet20.safetensors --out resnet20.packed --onnx resnet20.onnx
      python -m raybench.export net.packed --model my_models.nets:small_net
      python -m raybench.export resnet20.packed --onnx resnet20.onnx --data cifar10 --images 512

    A packed quantized model is 8 to 40 times smaller than its fp32 file; any other model is packed
    losslessly as floats. The ONNX graph is int8 for ONNX Runtime, with ranges from training images.
    The accuracies of the packed model and of the graph are measured on the test split.
    """

    file: Annotated[str, tyro.conf.Positional]
    """The trained model, written by --store or --keep, or packed; a file or an address."""
    model: str = ""
    """The import path of the file's model if it is your own, `package.module:factory`: a file alone
    must not cause the import of code."""
    out: Path | None = None
    """The packed file to write. Default: the model's name with .packed (in . for an address)."""
    onnx: Path | None = None
    """The int8 ONNX graph to write."""
    data: str = ""
    """Data set for the graph's ranges and both accuracies. Default: the Experiment's."""
    images: int = onnx_graph.CALIBRATION_IMAGES
    """Number of training images for the graph's ranges."""
    json: bool = False
    """Prints a single JSON object on standard output."""


def parse(arguments: list[str]) -> Export:
    """The command line. Raises SystemExit."""
    return command_line(Export, arguments, "export")


@torch.inference_mode()
def export(options: Export) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Writes the files; returns the breakdown of the packed file, and figures about both.

    Everything is computed and checked before the first file is written.

    Raises:
        ValueError: no trained model, no data for the ranges, or a graph that ONNX Runtime refuses.
    """
    if options.images < 1:
        raise ValueError(f"--images is {options.images}: 1 or more")
    if str(options.file).endswith(".onnx"):
        raise ValueError(f"{options.file} is an ONNX graph: name the model it was made from")
    file = fetched.file(options.file)
    beside = Path(file.name) if is_remote(str(options.file)) else file
    out = options.out or beside.with_suffix(SUFFIX)
    for path in (out, options.onnx):
        require_new_file(path)
    experiment, classes, seen, inputs = artefact.about(file)
    if options.model not in ("", experiment.model):
        raise ValueError(f"{options.file} holds a model of {experiment.model}, not {options.model}")
    model = artefact.load(file, options.model)
    content = packed.encode(model, experiment, classes, seen=seen, inputs=inputs)
    back = read_back(content, model, experiment, classes)
    figures: dict[str, Any] = {"packed": str(out)}
    graph = None
    if options.onnx is not None:
        graph, graph_figures = int8_graph(back, experiment, inputs, options)
        figures |= {"onnx": str(options.onnx), **graph_figures}
    artefact.write(content, out)
    if options.onnx is not None and graph is not None:
        artefact.write(graph, options.onnx)
    return breakdown(out, options.model), totals(out, options.model) | figures


def read_back(content: bytes, model: nn.Module, experiment: Experiment, classes: int) -> nn.Module:
    """The model decoded from the packed content; checks that it equals `model` to the bit."""
    back = artefact.skeleton(experiment, classes).eval()
    weights = back.state_dict()
    for name, tensor in packed.decode(packed.opened(content), weights).items():
        weights[name].copy_(tensor)
    for name, tensor in model.state_dict().items():
        same = (tensor.reshape(-1).view(torch.uint8), weights[name].reshape(-1).view(torch.uint8))
        assert torch.equal(*same), name
    return back


def int8_graph(
    model: nn.Module, experiment: Experiment, inputs: Inputs | None, options: Export
) -> tuple[bytes, dict[str, Any]]:
    """The graph, with its bytes and both accuracies on the test split.

    Args:
        inputs: the model's inputs from its file; None for those of the data.
    """
    # The recipe is unused, but another data set may be too small for its batch.
    recipe = replace(experiment.recipe, batch=1, crop=0)
    alone = replace(
        experiment, data=options.data or experiment.data, recipe=recipe, parallel=Parallel()
    )
    images = data.load(alone)
    classes = model(torch.zeros(1, 3, alone.image_size, alone.image_size)).shape[1]
    if images.classes != classes:
        raise ValueError(f"{alone.data} has {images.classes} classes, the model {classes}")
    fp32 = onnx_graph.fp32_graph(model, alone.image_size)
    int8 = onnx_graph.int8_graph(
        model, fp32, onnx_graph.calibration_batches(images, options.images)
    )
    graph = served_graph.served(int8, inputs or images.inputs, experiment)
    decoded, _ = evaluate(model, images, images.test, parallel.replicas(alone.parallel))
    return graph, {
        "onnx_bytes": len(graph),
        "onnx_fp32_bytes": len(fp32),
        "test_accuracy": decoded,
        "onnx_test_accuracy": served_graph.accuracy(graph, images.test),
        "test_images": len(images.test),
    }


def as_text(table: pd.DataFrame, figures: dict[str, Any]) -> str:
    """The tensors that are not constant, and one line per figure."""
    shown = table[table["bytes"] > 0].copy()
    shown["sparsity"] = shown["sparsity"].round(3)
    shown["entropy_bytes"] = shown["entropy_bytes"].round().astype(int)
    hidden = len(table) - len(shown)
    lines = [text.as_text(f"{figures['packed']} ({hidden} constant tensors not shown)", shown)]
    lines += [_line(name, value) for name, value in figures.items()]
    return "\n".join(lines)


def _line(name: str, value: Any) -> str:
    if value is None:
        return f"{name:20} –"
    if name.endswith("accuracy"):
        return f"{name:20} {100 * value:.2f} %"
    if isinstance(value, float):
        return f"{name:20} {value:,.4g}"
    return f"{name:20} {value:,}" if isinstance(value, int) else f"{name:20} {value}"


def run(options: Export) -> int:
    """The exit code: 0, or 2 if the model cannot be exported."""
    try:
        table, figures = export(options)
    except (ValueError, OSError) as error:
        print(f"raybench.export: {error}", file=sys.stderr)
        return 2
    if options.json:
        layers = table.to_dict(orient="records")
        print(json.dumps({**figures, "tensors": layers, **measure.machine()}))
    else:
        print(as_text(table, figures))
    return 0


if __name__ == "__main__":
    sys.exit(run(parse(sys.argv[1:])))
