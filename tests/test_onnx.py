"""The graphs for ONNX Runtime: the same network, and the same grids, in its operators."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from raybench import data
from raybench.artefact import latency, onnx_graph, served_graph
from raybench.models import build
from raybench.models.resnet_cifar import Block
from raybench.techniques import Progress
from raybench.techniques.quantize import Quantize
from trainers.pruning import base

pytestmark = pytest.mark.slow

SIZE, EPOCHS = 8, 6
RECIPE = replace(base.recipe, batch=64, crop=0)


class Small(nn.Module):
    """A ResNet of two blocks, of which the second has a shortcut that pads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(16, 16, 1, "A"), Block(16, 32, 2, "A"))
        self.fc = nn.Linear(32, 10)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.blocks(torch.relu(self.bn1(self.conv1(x_BCHW))))
        return self.fc(x_BCHW.mean((2, 3)))


@pytest.fixture(scope="module")
def images() -> data.Images:
    return data.load(replace(base, image_size=SIZE, recipe=RECIPE))


@pytest.fixture(scope="module")
def trained(images: data.Images) -> nn.Module:
    """A network that knows its digits, in 4 bits with 8 at its ends and in its inputs."""
    torch.manual_seed(0)
    model, technique = Small(), Quantize(bits=4, begin=0.7)
    technique.reshape(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    steps, step = EPOCHS * (len(images.train) // RECIPE.batch), 0
    memory: dict[str, Tensor] = {}
    technique.restructure(model, Progress(0, steps), {})
    for epoch in range(1, EPOCHS + 1):
        for x, y in data.batches(images, RECIPE, seed=0, epoch=epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            step += 1
            technique.after_step(model, Progress(step, steps), memory, None)
    technique.finish(model, {})
    return model.eval()


@pytest.fixture(scope="module")
def graphs(trained: nn.Module, images: data.Images) -> dict[str, bytes]:
    fp32 = onnx_graph.fp32_graph(trained, SIZE)
    calibration = list(onnx_graph.calibration_batches(images, 128))
    return {"fp32": fp32, "int8": onnx_graph.int8_graph(trained, fp32, calibration)}


@pytest.fixture(scope="module")
def digits(images: data.Images) -> tuple[Tensor, Tensor]:
    return next(data.evaluation_batches(images, images.test))


def operators(graph: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(graph).graph.node]


@torch.inference_mode()
def test_the_plain_network_has_torchs_own_layers(trained, digits):
    x, _ = digits
    plain = onnx_graph.plain(trained)
    kinds = {
        type(module) for module in plain.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert kinds == {nn.Conv2d, nn.Linear}
    wanted = Small().state_dict()
    assert list(plain.state_dict()) == list(wanted)
    unrounded = copy.deepcopy(trained)
    for module in unrounded.modules():
        if hasattr(module, "input_bits"):
            module.input_bits.zero_()
    assert torch.equal(plain(x), unrounded(x))
    assert type(trained.conv1) is not nn.Conv2d  # the model itself stays


@torch.inference_mode()
def test_the_fp32_graph_gives_the_plain_networks_logits(trained, graphs, digits):
    x, _ = digits
    for batch in (x[:1], x[:7], x):
        logits = onnx_graph.logits(onnx_graph.session(graphs["fp32"]), batch)
        torch.testing.assert_close(logits, onnx_graph.plain(trained)(batch), atol=1e-4, rtol=1e-4)


def test_all_between_the_images_and_the_logits_is_int8(graphs):
    actual = operators(graphs["int8"])
    assert "QLinearGlobalAveragePool" in actual
    assert (actual[0], actual[-1]) == ("QuantizeLinear", "DequantizeLinear")
    assert actual.count("QuantizeLinear") == actual.count("DequantizeLinear") == 1


def test_a_shortcut_that_pads_is_one_convolution(graphs):
    layers = {"Add", "Conv", "Gemm", "Relu"}
    assert set(operators(graphs["fp32"])) == layers | {"GlobalAveragePool", "Squeeze"}
    assert operators(graphs["fp32"]).count("Conv") == 6
    assert operators(graphs["int8"]).count("QLinearConv") == 6
    assert "Conv" not in operators(graphs["int8"])


@torch.inference_mode()
def test_the_int8_graph_is_near_the_decoded_network(trained, graphs, digits, images):
    x, y = digits
    wanted = trained(x)
    logits = onnx_graph.logits(onnx_graph.session(graphs["int8"]), x)
    bound = onnx_graph.Bound(graphs["int8"])
    for part in (x, x[:1], x.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(bound(part), onnx_graph.logits(onnx_graph.session(graphs["int8"]), part))
    agree = (logits.argmax(1) == wanted.argmax(1)).float().mean()
    right = float((wanted.argmax(1) == y).float().mean())
    assert right > 0.8
    assert agree > 0.97
    assert (logits - wanted).abs().mean() < 0.05 * wanted.abs().mean()
    served = served_graph.served(graphs["int8"], images.inputs, base)
    scored = served_graph.accuracy(served, images.test)
    assert scored == pytest.approx(float((logits.argmax(1) == y).float().mean()), abs=0.01)
    assert scored == pytest.approx(right, abs=0.03)


def test_the_int8_graph_holds_the_models_own_codes(trained, graphs):
    stored = {
        i.name: onnx.numpy_helper.to_array(i)
        for i in onnx.load_from_string(graphs["int8"]).graph.initializer
    }
    compared = 0
    for name, module in trained.named_modules():
        if not hasattr(module, "weight_bits"):
            continue
        steps = module.weight_step.view(-1, *(1,) * (module.weight.ndim - 1))
        codes = (module.weight / steps).round().detach().numpy()
        actual = stored[f"{name}.weight_quantized"]
        # A batch norm that multiplies by less than zero turns the channel's sign.
        assert np.array_equal(np.abs(actual), np.abs(codes)), name
        assert np.abs(actual).max() <= 2 ** (int(module.weight_bits) - 1) - 1
        compared += 1
    assert compared == 6


def test_learned_ranges_are_the_graphs(trained, graphs):
    stored = {
        i.name: onnx.numpy_helper.to_array(i)
        for i in onnx.load_from_string(graphs["int8"]).graph.initializer
    }
    scale, zero = stored["images_scale"], stored["images_zero_point"]
    assert scale == pytest.approx(trained.conv1.input_step.item(), rel=1e-3)
    assert int(zero) == int(trained.conv1.input_zero_point)


def test_calibration_takes_training_images(images):
    actual = torch.cat(list(onnx_graph.calibration_batches(images, 100)))
    assert actual.shape == (100, 3, SIZE, SIZE)
    every = torch.cat([x for x, _ in data.evaluation_batches(images, images.train)])
    assert torch.equal(actual, every[:100])


class Unexportable(nn.Module):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.tensor(np.linalg.svd(x_BCHW.numpy())[1])


def test_what_has_no_graph_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="the model has no ONNX graph: "):
        onnx_graph.fp32_graph(Unexportable(), SIZE)


def test_an_onnx_runtime_without_the_operators_is_an_error(trained, graphs, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("Could not find an implementation for QLinearConv(10)")

    monkeypatch.setattr(onnx_graph, "session", refuse)
    with pytest.raises(ValueError, match=r"has no int8 graph of the model: .*QLinearConv"):
        onnx_graph.int8_graph(trained, graphs["fp32"], [torch.zeros(4, 3, SIZE, SIZE)])


class TestLatency:
    def test_of_all_sides_on_both_clocks(self, trained, graphs):
        sides = latency.sides(graphs["int8"], graphs["fp32"], trained)
        measured = latency.measure(sides, torch.randn(2, 3, SIZE, SIZE), runs=5, warm_up=1)
        assert list(measured) == ["int8", "ort_fp32", "eager"]
        for times in measured.values():
            assert times.wall_ms.shape == times.thread_ms.shape == (5,)
            # One thread, the calling one: what it works is what it takes, or less than that.
            assert (times.thread_ms > 0).all()
            assert (times.thread_ms <= 1.05 * times.wall_ms + 0.1).all()
            summary = times.summary()
            assert summary["wall_ms_p10"] <= summary["wall_ms"] <= summary["wall_ms_p90"]
            assert summary["thread_ms"] == np.median(times.thread_ms)

    def test_runs_are_interleaved_and_each_is_warmed(self):
        calls: list[str] = []
        sides = {name: lambda x, name=name: calls.append(f"{name}{len(x)}") for name in "ab"}
        latency.measure(sides, torch.randn(3, 3, 4, 4), runs=2, warm_up=1)
        assert calls == ["a3", "a3", "b3", "b3"] * 3

    def test_threads_are_as_before(self):
        before = torch.get_num_threads()
        seen: list[int] = []
        try:
            torch.set_num_threads(2)
            sides = {"a": lambda x: seen.append(torch.get_num_threads())}
            latency.measure(sides, torch.randn(1, 3, 4, 4), runs=1, warm_up=0)
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)
        assert set(seen) == {1}

    def test_a_ratio_lies_in_its_interval(self):
        rng = np.random.default_rng(1)
        slow, fast = rng.normal(30, 1, 400), rng.normal(10, 1, 400)
        actual, low, high = latency.ratio(slow, fast)
        assert low < actual < high
        assert actual == pytest.approx(3, abs=0.05)
        assert high - low < 0.15
        assert latency.ratio(slow, fast) == (actual, low, high)
        assert latency.ratio(fast, fast) == (1, 1, 1)


def test_a_vit_without_grids_is_calibrated(images):
    model = build("vit32x1", classes=10, image_size=SIZE).eval()
    fp32 = onnx_graph.fp32_graph(model, SIZE)
    graph = onnx_graph.int8_graph(model, fp32, onnx_graph.calibration_batches(images, 64))
    x = torch.cat(list(onnx_graph.calibration_batches(images, 64)))
    with torch.inference_mode():
        wanted = model(x)
    logits = onnx_graph.logits(onnx_graph.session(graph), x)
    assert (logits - wanted).abs().mean() < 0.5 * wanted.std()
