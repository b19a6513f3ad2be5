"""The packed file: lossless to the bit, near the entropy, and never a crash or a wrong model."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from raybench import artefact
from raybench.artefact import codecs, entropy, packed, streams
from raybench.artefact.breakdown import REST, breakdown, totals
from raybench.models import build
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from raybench.techniques.switch import Switch
from trainers.pruning import base

NAME = "resnet20"


def quantized(
    sparsity: float, bits: int, *, name: str = NAME, size: int = 32, seed: int = 0
) -> tuple[nn.Module, packed.Experiment]:
    """A network with lively batch norms, pruned and rounded, and its Experiment."""
    torch.manual_seed(seed)
    prune = Prune(final_sparsity=sparsity, schedule="constant", begin=1.0)
    quantize = Quantize(bits=bits, begin=1.0)
    experiment = replace(base, model=name, image_size=size, prune=prune, quantize=quantize)
    model = build(name, classes=10, image_size=size)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.2)
    for technique in (prune, quantize):
        technique.reshape(model)
    for technique in (prune, quantize):
        technique.finish(model)
    return model.eval(), experiment


def bits_of(tensor: Tensor) -> bytes:
    return codecs.byte_rows(tensor).tobytes()


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert tensor.shape == other[name].shape, name
        assert bits_of(tensor) == bits_of(other[name]), name


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


def chosen(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {name: codecs.choose(name, tensors)[0] for name in tensors}


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
        own = model.state_dict()
        back = packed.decode(packed.opened(packed.encode(model, base, 10)), own)
        assert_same_bits(own, back)

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
        weight = model.layer1[0].conv1.weight
        place = (weight.view(-1) == 0).nonzero()[0]
        weight.data.view(-1)[place] = -0.0
        own = model.state_dict()
        assert codecs.choose("layer1.0.conv1.weight", own)[0] != "grid"
        assert_same_bits(own, packed.decode(packed.opened(packed.encode(model, base, 10)), own))

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
        own = model.state_dict()
        content = packed.encode(model, base, 10)
        assert_same_bits(own, packed.decode(packed.opened(content), own))

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


class TestCodec:
    def test_is_the_smallest(self):
        torch.manual_seed(0)
        dense = torch.randn(4000)
        tensors = {
            "constant": torch.zeros(4000),
            "half": dense.half().float(),
            "sparse": torch.where(torch.rand(4000) < 0.7, 0.0, dense),
            "planes": dense,
        }
        assert chosen(tensors) == {name: name for name in tensors}

    @pytest.mark.parametrize(
        ("weight", "step", "bits"),
        [
            ([1.0, 2.0, 8.0], 1.0, 4),  # a code too large
            ([1.0, 2.0, 2.5], 1.0, 4),  # between two codes
            ([1.0, torch.nan, 2.0], 1.0, 4),
            ([1.0, 2.0, 3.0], 0.0, 4),
            ([1.0, 2.0, 3.0], torch.nan, 4),
            ([1.0, 2.0, 3.0], 1.0, 0),  # not quantized yet
        ],
    )
    def test_is_never_a_grid_that_loses_a_bit(self, weight, step, bits):
        tensors = {
            "x.weight": torch.tensor([weight]),
            "x.weight_step": torch.tensor([step]),
            "x.weight_bits": torch.tensor(bits),
        }
        assert codecs.choose("x.weight", tensors)[0] != "grid"

    def test_bits_that_no_grid_has_are_refused(self):
        tensors = {"x.weight": torch.ones(2, 2), "x.weight_bits": torch.tensor(9)}
        with pytest.raises(ValueError, match=r"x\.weight has 9 bits: 2 to 8, or 0 for none"):
            codecs.grid.bits("x.weight", tensors)


class TestEntropy:
    def test_buckets_hold_all_magnitudes_in_order(self):
        for bits in range(2, 9):
            largest = 2 ** (bits - 1) - 1
            buckets = entropy.buckets(largest)
            assert len(buckets) == 2 * largest + 1
            assert (buckets == buckets[::-1]).all()
            upward = np.diff(buckets[largest:])
            assert set(upward) <= {0, 1}
            assert (upward[: min(largest, 8)] == 1).all()
        assert buckets.max() == 23

    def test_eighths_are_powers_of_two(self):
        np.testing.assert_allclose(entropy.EIGHTHS, 2.0 ** (-np.arange(8) / 8), rtol=1e-15)

    @settings(max_examples=30)
    @given(
        bits=st.integers(2, 8),
        spread=st.floats(0.01, 60),
        count=st.integers(1, 3000),
        seed=st.integers(0, 1000),
    )
    def test_symbols_come_back_at_the_cost_that_was_estimated(self, bits, spread, count, seed):
        largest = 2 ** (bits - 1) - 1
        normal = np.random.default_rng(seed).normal(scale=spread, size=count)
        symbols = np.clip(np.rint(normal), -largest, largest).astype(np.intp) + largest
        buckets = entropy.buckets(largest)
        model, coder = entropy.model(symbols, buckets), entropy.RangeEncoder()
        entropy.append(coder, symbols, model, buckets)
        words = coder.get_compressed()
        back = entropy.take(entropy.RangeDecoder(words), count, model, buckets)
        assert (back == symbols).all()
        estimated = entropy.estimated_bytes(symbols, buckets) - len(model)
        assert estimated - 1 <= words.nbytes <= estimated * 1.001 + 8

    def test_of_a_histogram_is_what_the_formula_says(self):
        assert entropy.entropy_bytes(np.repeat([0, 1, 2, 3], 100)) == pytest.approx(400 * 2 / 8)
        assert entropy.entropy_bytes(np.zeros(7, np.intp)) == 0
        assert entropy.entropy_bytes(np.zeros(0, np.intp)) == 0


class TestSize:
    """Of ResNet-20, against 1,120,279 bytes that torch.save takes for it in fp32."""

    @pytest.mark.parametrize(
        ("sparsity", "bits", "reached"), [(0.6, 8, 8.0), (0.8, 4, 22.0), (0.9, 4, 36.0)]
    )
    def test_reaches_what_it_is_to_reach(self, tmp_path, sparsity, bits, reached):
        model, experiment = quantized(sparsity, bits)
        path = tmp_path / "m"
        artefact.save(model, experiment, 10, path)
        assert 1_120_279 / path.stat().st_size >= reached
        table = breakdown(path)
        assert table["bytes"].sum() == path.stat().st_size
        on_grid = table[table["codec"] == "grid"]
        assert len(on_grid) == 20
        assert set(on_grid["bits"]) == {8, bits}
        # Models of the range coder included, the codes take hardly more than their entropy.
        assert on_grid["bytes"].sum() < 1.02 * on_grid["entropy_bytes"].sum()
        counted = on_grid["shape"].str.split("x").map(lambda s: np.prod([int(n) for n in s]))
        assert np.average(on_grid["sparsity"], weights=counted) == pytest.approx(sparsity, abs=0.04)
        # What is left is header and index: the 217 tensors of the network are well under 700 bytes.
        assert table["parameter"].iloc[-1] == REST
        assert 200 < table["bytes"].iloc[-1] < 700
        assert table[table["codec"] == "constant"]["bytes"].sum() == 0

    def test_rivals_are_what_they_are_called(self, tmp_path):
        model, experiment = quantized(0.6, 8, size=8)
        artefact.save(model, experiment, 10, tmp_path / "m")
        sums = totals(tmp_path / "m")
        torch.save(dict(build(NAME, classes=10, image_size=32).state_dict()), tmp_path / "dense")
        assert sums["fp32_bytes"] == pytest.approx((tmp_path / "dense").stat().st_size, rel=0.01)
        assert sums["file_bytes"] == (tmp_path / "m").stat().st_size
        assert sums["file_bytes"] < sums["fp32_zstd_bytes"] < sums["fp32_bytes"]
        assert sums["ratio_fp32"] == sums["fp32_bytes"] / sums["file_bytes"]
        assert 1 < sums["ratio_entropy"] < 1.03


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, bytes]:
    model, experiment = quantized(0.7, 4, size=8)
    path = tmp_path_factory.mktemp("stored") / "m"
    artefact.save(model, experiment, 10, path)
    return path, model, path.read_bytes()


class Tiny(nn.Sequential):
    """A layer of each kind, and a norm: quick to decode a thousand times."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
            nn.Linear(96, 20), nn.Linear(20, 4, bias=False),
        )  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> tuple[dict[str, Tensor], bytes]:
    """A quantized network's state_dict, with a sparse and a dense tensor beside, and its file."""
    torch.manual_seed(0)
    model, technique = Tiny(), Quantize(bits=4, begin=1.0)
    technique.reshape(model)
    technique.finish(model)
    model.register_buffer("sparse", torch.randn(50) * (torch.rand(50) < 0.3))
    model.register_buffer("dense", torch.randn(7, 3))
    own = model.state_dict()
    assert set(chosen(own).values()) == set(codecs.CODECS)
    return own, packed.encode(model, base, 10)


def refused(content: bytes, path: Path, model: nn.Module, because: str) -> None:
    """By both ways to read it, with the model left as it was."""
    path.write_bytes(content)
    before = [bits_of(tensor) for tensor in model.state_dict().values()]
    for read in (lambda: artefact.load(path), lambda: artefact.restore(model, path)):
        with pytest.raises(ValueError, match=because) as error:
            read()
        assert str(path) in str(error.value)
    assert [bits_of(tensor) for tensor in model.state_dict().values()] == before


@pytest.mark.slow
class TestDamage:
    def test_is_seen_before_anything_is_decoded(self, stored, tmp_path, monkeypatch):
        _, model, content = stored

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("decoded")

        for module, name in ((packed, "decompress"), (codecs, "decompress"), (packed, "In")):
            monkeypatch.setattr(module, name, refuse)
        rng = np.random.default_rng(0)
        for place in rng.integers(packed.START, len(content), 30):
            altered = bytearray(content)
            altered[place] ^= 1 << int(rng.integers(8))
            refused(bytes(altered), tmp_path / "m", model, "checksum is wrong")
        for length in (packed.START, 40, 500, len(content) // 2, len(content) - 1):
            refused(content[:length], tmp_path / "m", model, "truncated or altered")
        refused(content + b"\0", tmp_path / "m", model, "truncated or altered")

    def test_in_the_first_bytes(self, stored, tmp_path):
        _, model, content = stored
        refused(content[:8], tmp_path / "m", model, "it is truncated")
        refused(content[:20], tmp_path / "m", model, "it is truncated")
        altered = bytearray(content)
        altered[packed.START - 1] ^= 1  # the checksum itself
        refused(bytes(altered), tmp_path / "m", model, "checksum is wrong")
        refused(b"Raybench" + content[8:], tmp_path / "m", model, "holds no trained model")
        refused(b"", tmp_path / "m", model, "holds no trained model")
        refused(b"PK\3\4" + content, tmp_path / "m", model, "holds no trained model")

    def test_a_later_version_is_named(self, stored, tmp_path):
        _, model, content = stored
        later = content[:8] + b"\2" + content[9:]
        refused(later, tmp_path / "m", model, "its version is 2, and this code reads 1")

    def test_another_model_is_named(self, stored, tmp_path):
        path = stored[0]
        for other, differs in (
            (quantized(0.7, 4, name="resnet32", size=8)[0], r"layer1\.3\."),
            (build(NAME, classes=10, image_size=8), r"conv1\.input_bits"),
        ):
            with pytest.raises(ValueError, match=f"is another model: they differ in {differs}"):
                artefact.restore(other, path)
        hundred = build(NAME, classes=100, image_size=8)
        Quantize(begin=1.0).reshape(hundred)
        with pytest.raises(ValueError, match=r"they differ in fc\.weight"):
            artefact.restore(hundred, path)

    def test_values_that_were_stored_otherwise_are_refused(self, stored, tmp_path):
        """As they would be by a library whose next version decodes to other numbers."""
        _, model, content = stored
        behind = bytearray(content[packed.START :])
        behind[-1] ^= 1  # the lower byte of an fp16 number
        refused(packed.seal(bytes(behind)), tmp_path / "m", model, "checksum that they were stored")

    def test_a_frame_that_claims_gigabytes_is_refused_unread(self):
        import zstandard

        small = zstandard.ZstdCompressor().compress(bytes(100))
        assert streams.decompress(memoryview(small), at_most=100) == bytes(100)
        with pytest.raises(ValueError, match="100 bytes are said to be where at most 99"):
            streams.decompress(memoryview(small), at_most=99)
        claim = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\1\0\0"
        with pytest.raises(ValueError, match="at most 1000 can be"):
            streams.decompress(memoryview(claim), at_most=1000)

    @settings(max_examples=200)
    @given(data=st.data())
    def test_under_a_right_checksum_is_an_error_or_the_same_model(self, tiny, data):
        """Flips, cuts, insertions anywhere behind the checksum, which is made right again."""
        own, content = tiny
        behind = bytearray(content[packed.START :])
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, len(behind)))
            damage = data.draw(st.sampled_from(["flip", "cut", "insert", "end"]))
            if damage == "flip" and place < len(behind):
                behind[place] ^= 1 << data.draw(st.integers(0, 7))
            elif damage == "cut":
                del behind[place : place + data.draw(st.integers(1, 9))]
            elif damage == "insert":
                behind[place:place] = data.draw(st.binary(min_size=1, max_size=9))
            else:
                del behind[place:]
        refused_or_whole(packed.seal(bytes(behind)), own)

    @settings(max_examples=200)
    @given(data=st.data())
    def test_of_the_numbers_within_is_an_error_or_the_same_model(self, tiny, data):
        """Of codecs, models of the range coder and constants, which zstd would else protect."""
        own, content = tiny
        opened = packed.opened(content)
        reader = streams.Reader(opened.streams)
        index = bytearray(streams.decompress(reader.chunk(), at_most=1 << 20))
        symbols, raw = bytearray(reader.chunk()), bytearray(reader.rest())
        for part in data.draw(st.lists(st.sampled_from([index, symbols, raw]), min_size=1)):
            place = data.draw(st.integers(0, len(part) - 1))
            part[place] = data.draw(st.integers(0, 255))
        head = content[packed.START : len(content) - len(opened.streams)]
        parts = streams.chunk(streams.compress(bytes(index))) + streams.chunk(bytes(symbols))
        refused_or_whole(packed.seal(head + parts + bytes(raw)), own)

    @settings(max_examples=150)
    @given(data=st.data())
    def test_of_the_header_is_an_error_or_another_experiment(self, tiny, data):
        own, content = tiny

        def damage(text: str) -> str:
            place = data.draw(st.integers(0, len(text) - 1))
            letter = data.draw(st.sampled_from('0123456789{}[]",:-.aeE'))
            return text[:place] + letter + text[place + data.draw(st.integers(0, 1)) :]

        altered = with_text(content, damage)
        try:
            found = packed.opened(altered)
        except ValueError:
            return
        assert type(found.experiment) is type(base)
        assert found.classes >= 1
        assert_same_bits(own, packed.decode(found, own))

    @pytest.mark.parametrize(
        ("change", "because"),
        [
            ({"model": "resnet21"}, r"layers is|no model"),
            ({"model": "resnet32"}, "is another model"),
            ({"image_size": 4}, "image_size is 4"),
            ({"quantize": None}, "is another model"),
            ({"prune": {"sparsity": 1}}, "has no field 'sparsity'"),
            ({"model": "vit32x2", "image_size": 10**6}, "would have"),
        ],
        ids=lambda value: str(value).partition(":")[0],
    )
    def test_of_an_experiment_is_told(self, stored, tmp_path, change, because):
        altered = with_header(stored[2], lambda about: about["experiment"].update(change))
        (tmp_path / "m").write_bytes(altered)
        with pytest.raises(ValueError, match=because) as error:
            artefact.load(tmp_path / "m")
        assert str(tmp_path / "m") in str(error.value)


def with_text(content: bytes, change) -> bytes:
    """The file with its header's text changed, and a right checksum."""
    head = packed.START + packed.FINGERPRINT + packed.CRC
    reader = streams.Reader(memoryview(content)[head:])
    text = streams.decompress(reader.chunk(), at_most=1 << 20).decode()
    header = streams.chunk(streams.compress(change(text).encode()))
    return packed.seal(content[packed.START : head] + header + bytes(reader.rest()))


def with_header(content: bytes, change) -> bytes:
    def changed(text: str) -> str:
        about = json.loads(text)
        change(about)
        return json.dumps(about)

    return with_text(content, changed)


def refused_or_whole(content: bytes, own: dict[str, Tensor]) -> None:
    """`own` is what the undamaged file holds, and the only model that can come out."""
    like = {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    try:
        found = packed.decode(packed.opened(content), like)
    except ValueError:
        return
    assert_same_bits(own, found)


def test_numbers_of_any_size_come_back():
    for value in (0, 1, 127, 128, 300, 2**31, 2**62):
        reader = streams.Reader(streams.number(value))
        assert reader.number() == value
        reader.end()
    with pytest.raises(ValueError, match="more than 63 bits"):
        streams.Reader(b"\xff" * 12).number()
    with pytest.raises(ValueError, match="1 bytes are wanted where 0 are left"):
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
