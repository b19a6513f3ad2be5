"""The network as a graph for ONNX Runtime: in fp32, or in int8 with the learned grids.

    decoded model ─ plain ─▶ fp32 graph ─ pre-process ─▶ quantize_static ─▶ int8 graph
                                                             ▲       ▲
                                  grids of a quantized model ┘       └ ranges seen on real images

The int8 graph holds a quantized model's own integer codes and learned input ranges; ONNX Runtime
calibrates the other tensors on training images. Activations are u8 and weights s8 per channel:
s8 activations were slower than fp32 on x86 (0.53 ms against 0.47 for ResNet-20). The format is
QOperator: as fast as QDQ, in a file that is 7 % smaller.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from raybench.artefact import grid
from raybench.data import Images, evaluation_batches
from raybench.models.resnet_cifar import Block, PadShortcut
from raybench.techniques.layers.rounded_weights import RoundedWeights

INPUT, OUTPUT = "images", "logits"
CALIBRATION_IMAGES, CALIBRATION_BATCH = 256, 64
SAME_RANGE = ("Relu", "Squeeze", "Flatten", "Reshape")


def plain(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode with torch's own layers, which do not round their inputs.

    Weights on a grid keep their values, as fp32.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    for module in model.modules():
        if isinstance(module, RoundedWeights):
            module.__class__ = module.class_before  # type: ignore[assignment]
            for name in grid.added(module.state_dict()):
                module._buffers.pop(name, None)
                module._parameters.pop(name, None)
    return model


def fp32_graph(model: nn.Module, image_size: int) -> bytes:
    """(images, 3, size, size) -> (images, classes), for any number of images.

    Raises:
        ValueError: ONNX lacks an operator of the model, or ONNX Runtime refuses the graph.
    """
    float_model = plain(model)
    _convolve_shortcuts(float_model)
    example = torch.zeros(2, 3, image_size, image_size)
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        try:
            torch.onnx.export(
                float_model,
                (example,),
                path,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=False,
                verbose=False,
            )
            _pool_by_name(path)
            quant_pre_process(path, path)  # folds constants and adds shapes for quantization
        except Exception as error:  # from torch.export, onnxscript or ONNX Runtime
            raise ValueError(f"the model has no ONNX graph: {_first_line(error)}") from error
        return path.read_bytes()


def int8_graph(model: nn.Module, fp32: bytes, calibration: Iterable[Tensor]) -> bytes:
    """The fp32 graph of this model in int8; the missing ranges come from batches of real images.

    Raises:
        ValueError: ONNX Runtime lacks an int8 operator for it.
    """
    graph = onnx.load_from_string(fp32)
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                graph,
                path,
                Batches(calibration),
                quant_format=QuantFormat.QOperator,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"TensorQuantOverrides": _grids(graph, tensors)},
            )
            session(path.read_bytes())
        except Exception as error:  # ONNX Runtime raises errors of many types
            raise ValueError(
                f"ONNX Runtime {onnxruntime.__version__} has no int8 graph of the model: "
                f"{_first_line(error)}"
            ) from error
        return path.read_bytes()


class Batches(CalibrationDataReader):
    """Batches of images for ONNX Runtime's calibration."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        x_BCHW = next(self._batches, None)
        return None if x_BCHW is None else {INPUT: x_BCHW.contiguous().numpy()}


def calibration_batches(images: Images, count: int = CALIBRATION_IMAGES) -> Iterator[Tensor]:
    """The first `count` training images in their seeded order, without augmentation."""
    train = images.train
    first = replace(train, rows=train.rows[:count])
    for x_BCHW, _ in evaluation_batches(images, first, batch=CALIBRATION_BATCH):
        yield x_BCHW


class Bound:
    """A session that reuses its input and output buffers: a call only copies the images.

    Images in the graph's format -> (images, classes), which the next call overwrites. An int8
    ResNet-20 takes 2 to 7 % less time per image than with `run`, which allocates a new output.
    """

    def __init__(self, graph: bytes) -> None:
        self._session = session(graph)
        self._input = torch.empty(0)

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        if x_BCHW.shape != self._input.shape:
            self._bind(x_BCHW)
        self._input.copy_(x_BCHW)
        self._session.run_with_iobinding(self._binding)
        return self._output

    def _bind(self, x_BCHW: Tensor) -> None:
        self._input = torch.empty(
            x_BCHW.shape, dtype=x_BCHW.dtype
        )  # contiguous, even if the images are not
        self._output = logits(self._session, x_BCHW)
        self._binding = self._session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy  # shares the memory
        self._binding.bind_ortvalue_input(INPUT, value(self._input.numpy()))
        self._binding.bind_ortvalue_output(OUTPUT, value(self._output.numpy()))


def session(graph: bytes) -> onnxruntime.InferenceSession:
    """A session that computes only in the calling thread, so thread time covers all its work."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    # The fallback would print the error on standard output, and try the same provider again.
    return onnxruntime.InferenceSession(
        graph, options, providers=["CPUExecutionProvider"], enable_fallback=False
    )


def logits(of: onnxruntime.InferenceSession, x_BCHW: Tensor) -> Tensor:
    """(images, classes)"""
    return torch.from_numpy(of.run(None, {INPUT: x_BCHW.contiguous().numpy()})[0])


def _convolve_shortcuts(model: nn.Module) -> None:
    """Replaces every PadShortcut by a 1x1 convolution with zeros and ones, in place.

    The results are the same and cost 1 % of the multiply-adds; Slice and Pad cost 5 % of the time.
    """
    for module in list(model.modules()):
        if isinstance(module, Block) and isinstance(module.shortcut, PadShortcut):
            inside, outside = module.conv1.in_channels, module.conv2.out_channels
            convolution = nn.Conv2d(inside, outside, 1, stride=2, bias=False)
            nn.init.zeros_(convolution.weight)
            for channel in range(inside):
                place = channel + module.shortcut.extra // 2
                convolution.weight.data[place, channel] = 1.0
            module.shortcut = convolution


def _pool_by_name(path: Path) -> None:
    """Replaces every mean over height and width by a GlobalAveragePool, in the file.

    GlobalAveragePool has an int8 kernel. ReduceMean is computed in fp32 between two conversions,
    together 1 % of a ResNet-20's int8 latency.
    """
    model = onnx.load(path)
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    nodes = []
    for node in model.graph.node:
        axes = (
            constants.get(node.input[1])
            if node.op_type == "ReduceMean" and node.input[1:]
            else None
        )
        if axes is None or sorted(axes.tolist()) != [2, 3]:
            nodes.append(node)
            continue
        kept = all(a.i for a in node.attribute if a.name == "keepdims")
        pooled = node.output[0] if kept else f"{node.output[0]}_pooled"
        nodes.append(onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [pooled]))
        if not kept:
            nodes.append(onnx.helper.make_node("Squeeze", [pooled, node.input[1]], node.output))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def _grids(graph: onnx.ModelProto, tensors: dict[str, Tensor]) -> dict[str, list[dict[str, Any]]]:
    """The learned scales and ranges of a quantized model, by tensor of the graph.

    A layer's input range becomes the range of the tensor, for all layers that read it. The
    logits of two trained ResNet-20 are 2.5 and 1.9 times closer to the decoded model's than with
    ONNX Runtime's own scales and ranges.
    """
    folded = {i.name: onnx.numpy_helper.to_array(i) for i in graph.graph.initializer}
    made_by = {output: node for node in graph.graph.node for output in node.output}
    overrides: dict[str, list[dict[str, Any]]] = {}
    for node in graph.graph.node:
        name = node.input[1] if node.op_type in ("Conv", "Gemm") else ""
        if name not in folded or not grid.bits(name, tensors):
            continue
        overrides[name] = [
            {"axis": 0, "quant_type": QuantType.QInt8, "scale": np.float32(s), "zero_point": 0}
            for s in _folded_steps(name, tensors, folded[name])
        ]
        layer, read = name.rpartition(".")[0], node.input[0]
        if bits := int(tensors.get(f"{layer}.input_bits", torch.zeros(()))):
            step = float(tensors[f"{layer}.input_step"])
            zero = int(tensors.get(f"{layer}.input_zero_point", torch.zeros(())))
            low, high = np.float32(-zero * step), np.float32((2**bits - 1 - zero) * step)
            for range_before in overrides.get(read, []):  # from another reader: cover both
                low, high = min(low, range_before["rmin"]), max(high, range_before["rmax"])
            overrides[read] = [{"rmin": low, "rmax": high}]
            # A ReLU is fused into the operator before it, whose range keeps that operator's name.
            # An operator that only reshapes a tensor has the range of its input.
            while read in made_by and made_by[read].op_type in SAME_RANGE:
                overrides[made_by[read].input[0]] = overrides[read]
                read = made_by[read].input[0]
    return overrides


def _folded_steps(name: str, tensors: dict[str, Tensor], folded: NDArray[Any]) -> list[float]:
    """The step of each channel of a weight into which the exporter has folded a batch norm."""
    weight = tensors[name].double().flatten(1)
    steps = tensors[name + grid.STEP].double().expand(len(weight))
    largest, place = weight.abs().max(1, keepdim=True)
    factor = torch.from_numpy(folded.copy()).double().flatten(1).gather(1, place) / largest
    return torch.where(largest > 0, factor.abs(), 1.0).squeeze(1).mul(steps).tolist()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's progress and ONNX Runtime's advice about preprocessing."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
