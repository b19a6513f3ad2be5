"""The packed file gives back every bit, of networks, numbers and tensors of any kind."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_models import assert_same_bits, bits_of, quantized
from torch import Tensor, nn

from raybench import artefact
from raybench.artefact import codecs, packed, streams
from raybench.models import build
from raybench.techniques.switch import Switch
from trainers.pruning import base


class Bag(nn.Module):
    """Any tensors at all as a state_dict."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def there_and_back(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    content = packed.encode(Bag(tensors), base, 10)
    like = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    return packed.decode(packed.opened(content), like)


class TestRoundTrip:
    @settings(max_examples=4)
    @given(
        sparsity=st.floats(0, 0.99),
        bits=st.integers(2, 8),
        name=st.sampled_from(["resnet20", "vit32x1"]),
        seed=st.integers(0, 1000),
    )
    def test_gives_back_every_bit_and_every_logit(
        self, tmp_path_factory, sparsity, bits, name, seed
    ):
        model, experiment = quantized(sparsity, bits, name=name, size=8, seed=seed)
        path = tmp_path_factory.mktemp("packed") / "m"
        stored = artefact.save(model, experiment, 10, path)
        content = path.read_bytes()
        assert stored == len(content) == artefact.encoded_bytes(model, experiment, 10)
        assert artefact.encode(copy.deepcopy(model), experiment, 10) == content
        back = artefact.load(path)
        assert artefact.is_packed(path)
        assert_same_bits(model.state_dict(), back.state_dict())
        x = torch.randn(3, 3, 8, 8)
        assert bits_of(back(x)) == bits_of(model(x))

    @settings(max_examples=40)
    @given(
        shape=st.lists(st.integers(0, 9), max_size=4),
        bits=st.integers(2, 8),
        per_channel=st.booleans(),
        seed=st.integers(0, 1000),
    )
    def test_of_codes_of_any_shape(self, shape, bits, per_channel, seed):
        generator = torch.Generator().manual_seed(seed)
        largest = 2 ** (bits - 1) - 1
        codes = torch.randint(-largest, largest + 1, shape, generator=generator)
        steps = torch.rand(shape[0] if per_channel and shape else 1, generator=generator) + 0.01
        layer = nn.Module()
        layer.register_buffer("weight", codes * steps.view(-1, *(1,) * (len(shape) - 1)) + 0.0)
        if not shape:
            layer.weight = layer.weight.reshape(())
        layer.register_buffer("weight_step", steps)
        layer.register_buffer("weight_bits", torch.tensor(bits, dtype=torch.uint8))
        model = nn.Module()
        model.layer = layer
        state = model.state_dict()
        back = packed.decode(packed.opened(packed.encode(model, base, 10)), state)
        assert_same_bits(state, back)

    @settings(max_examples=40)
    @given(
        dtype=st.sampled_from(
            [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
        ),
        count=st.integers(0, 300),
        zeros=st.floats(0, 1),
        seed=st.integers(0, 1000),
    )
    def test_of_any_tensors(self, dtype, count, zeros, seed):
        torch.manual_seed(seed)
        dense = torch.randn(count) * 50
        tensors = {
            "plain": dense.to(dtype),
            "some": torch.where(torch.rand(count) < zeros, 0.0, dense).to(dtype),
            "halves": dense.half().to(dtype),
            "alike": torch.full((count, 2), 3.0).to(dtype),
            "one": torch.tensor(5.0).to(dtype),
        }
        assert_same_bits(tensors, there_and_back(tensors))

    def test_of_numbers_that_are_none(self):
        odd = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-42, 6e-8, 65504.0])
        payload = torch.tensor([0x7FC12345, 0x7F812345, 0], dtype=torch.int32).view(torch.float32)
        tensors = {"odd": odd, "twice": odd.repeat(60), "payload": payload, "zeros": 0 * odd[:2]}
        assert_same_bits(tensors, there_and_back(tensors))

    def test_a_negative_zero_is_on_no_grid(self):
        model, _ = quantized(0.5, 4, size=8)
        weight = dict(model.named_parameters())["layer1.0.conv1.weight"]
        place = (weight.view(-1) == 0).nonzero()[0]
        weight.data.view(-1)[place] = -0.0
        state = model.state_dict()
        assert codecs.choose("layer1.0.conv1.weight", state)[0] != "grid"
        assert_same_bits(state, packed.decode(packed.opened(packed.encode(model, base, 10)), state))

    def test_a_finished_model_is_all_on_its_grids(self):
        """Every code of it, zeros that were rounded down to included."""
        for sparsity, bits in ((0.0, 2), (0.5, 4)):
            tensors = quantized(sparsity, bits)[0].state_dict()
            weights = [name for name in tensors if f"{name}_bits" in tensors]
            assert len(weights) == 20
            assert {codecs.choose(name, tensors)[0] for name in weights} == {"grid"}

    def test_of_a_model_that_is_not_quantized(self):
        model = build("vit32x2", classes=10, image_size=8)
        Switch(experts=3, blocks="all").reshape(model)
        state = model.state_dict()
        content = packed.encode(model, base, 10)
        assert_same_bits(state, packed.decode(packed.opened(content), state))

    def test_of_channels_last_weights_is_the_same(self):
        model, experiment = quantized(0.5, 4, size=8)
        turned = copy.deepcopy(model).to(memory_format=torch.channels_last)
        assert artefact.encode(turned, experiment, 10) == artefact.encode(model, experiment, 10)

    def test_fills_a_model_where_it_lies(self, tmp_path):
        model, experiment = quantized(0.5, 4, size=8, seed=1)
        other, _ = quantized(0.0, 8, size=8, seed=2)
        artefact.save(model, experiment, 10, tmp_path / "m")
        places = [tensor.data_ptr() for tensor in other.state_dict().values()]
        artefact.restore(other, tmp_path / "m")
        assert_same_bits(model.state_dict(), other.state_dict())
        assert [tensor.data_ptr() for tensor in other.state_dict().values()] == places


def test_numbers_of_any_size_come_back():
    for value in (0, 1, 127, 128, 300, 2**31, 2**62):
        reader = streams.Reader(streams.number(value))
        assert reader.number() == value
        reader.end()
    with pytest.raises(ValueError, match="more than 63 bits"):
        streams.Reader(b"\xff" * 12).number()
    with pytest.raises(ValueError, match="1 bytes are needed, but only 0 are left"):
        streams.Reader(b"\x80").number()


def test_a_failing_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "m"
    artefact.write(b"old", path)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        artefact.write(b"new", path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
