"""A damaged packed file: always an error, and never a crash or a wrong model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_models import NAME, assert_same_bits, bits_of, chosen, quantized
from torch import Tensor, nn

from raybench import artefact
from raybench.artefact import codecs, packed, streams
from raybench.models import build
from raybench.techniques.quantize import Quantize
from trainers.pruning import base


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
    technique.finish(model, {})
    model.register_buffer("sparse", torch.randn(50) * (torch.rand(50) < 0.3))
    model.register_buffer("dense", torch.randn(7, 3))
    state = model.state_dict()
    assert set(chosen(state).values()) == set(codecs.CODECS)
    return state, packed.encode(model, base, 10)


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
        later = content[:8] + b"\3" + content[9:]
        refused(later, tmp_path / "m", model, "its version is 3, and this code reads 2")

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
        refused(packed.seal(bytes(behind)), tmp_path / "m", model, "match their stored checksum")

    def test_a_frame_that_claims_gigabytes_is_refused_unread(self):
        import zstandard

        small = zstandard.ZstdCompressor().compress(bytes(100))
        assert streams.decompress(memoryview(small), at_most=100) == bytes(100)
        with pytest.raises(ValueError, match="claims 100 bytes, but at most 99"):
            streams.decompress(memoryview(small), at_most=99)
        claim = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\1\0\0"
        with pytest.raises(ValueError, match="at most 1000 can be"):
            streams.decompress(memoryview(claim), at_most=1000)

    @settings(max_examples=200)
    @given(data=st.data())
    def test_under_a_right_checksum_is_an_error_or_the_same_model(self, tiny, data):
        """Flips, cuts, insertions anywhere behind the checksum, which is made right again."""
        state, content = tiny
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
        refused_or_whole(packed.seal(bytes(behind)), state)

    @settings(max_examples=200)
    @given(data=st.data())
    def test_of_the_numbers_within_is_an_error_or_the_same_model(self, tiny, data):
        """Of codecs, models of the range coder and constants, which zstd would else protect."""
        state, content = tiny
        opened = packed.opened(content)
        reader = streams.Reader(opened.streams)
        index = bytearray(streams.decompress(reader.chunk(), at_most=1 << 20))
        symbols, raw = bytearray(reader.chunk()), bytearray(reader.rest())
        for part in data.draw(st.lists(st.sampled_from([index, symbols, raw]), min_size=1)):
            place = data.draw(st.integers(0, len(part) - 1))
            part[place] = data.draw(st.integers(0, 255))
        head = content[packed.START : len(content) - len(opened.streams)]
        parts = streams.chunk(streams.compress(bytes(index))) + streams.chunk(bytes(symbols))
        refused_or_whole(packed.seal(head + parts + bytes(raw)), state)

    @settings(max_examples=150)
    @given(data=st.data())
    def test_of_the_header_is_an_error_or_another_experiment(self, tiny, data):
        state, content = tiny

        def damage(text: str) -> str:
            place = data.draw(st.integers(0, len(text) - 1))
            letter = data.draw(st.sampled_from('0123456789{}[]",:-.aeE'))
            return text[:place] + letter + text[place + data.draw(st.integers(0, 1)) :]

        altered = with_text(content, damage)
        try:
            actual = packed.opened(altered)
        except ValueError:
            return
        assert type(actual.stored.experiment) is type(base)
        assert actual.stored.classes >= 1
        assert_same_bits(state, packed.decode(actual, state))

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


class TestLimits:
    """Under a right checksum, as whoever writes a file on purpose can give it."""

    @pytest.mark.parametrize("classes", [0, -1, True, 2.0, "10", None])
    def test_classes_are_a_number_from_one_on(self, tiny, classes):
        content = with_header(tiny[1], lambda about: about.update(classes=classes))
        with pytest.raises(ValueError, match=r"classes is .*: a number from 1 on"):
            packed.opened(content)

    @pytest.mark.parametrize("version", [0, packed.VERSION + 1, 255])
    def test_other_versions_are_refused_older_ones_too(self, tiny, version):
        content = bytearray(tiny[1])
        content[len(packed.MAGIC)] = version
        with pytest.raises(ValueError, match=f"its version is {version}, and this code reads"):
            packed.opened(bytes(content))

    def test_an_index_is_no_larger_than_its_tensors_need(self, tiny):
        """Else a small file could ask for all memory."""
        state, content = tiny
        opened = packed.opened(content)
        reader = streams.Reader(opened.streams)
        index = streams.decompress(reader.chunk(), at_most=1 << 20)
        rest = bytes(reader.rest())
        head = content[packed.START : len(content) - len(opened.streams)]
        most = packed.INDEX_ENTRY * (1 + len(state))
        for size, because in ((most, "left over"), (most + 1, f"at most {most} can be")):
            padded = index + bytes(size - len(index))
            forged = packed.seal(head + streams.chunk(streams.compress(padded)) + rest)
            with pytest.raises(ValueError, match=because):
                packed.decode(packed.opened(forged), state)


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
        actual = packed.decode(packed.opened(content), like)
    except ValueError:
        return
    assert_same_bits(own, actual)
