"""Headers under a right checksum, as whoever writes a file on purpose can give them."""

from __future__ import annotations

import json
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as serialize
from shipped_files import BITS, VALUES, sealed, stored_models, with_header
from torch import Tensor

from raybench import artefact
from raybench.artefact import sparse_safetensors
from raybench.models import build


@pytest.fixture(scope="module", params=["packed", "safetensors"])
def content(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return stored_models(tmp_path_factory.mktemp("forged"))[request.param].read_bytes()


def refused(content: bytes, path: Path) -> str:
    """The one line with which the file is refused."""
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"holds no trained model|is another model") as error:
        artefact.load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "because"),
    [
        ({"classes": 0}, "classes is 0"),
        ({"classes": True}, "classes is True"),
        ({"classes": 9}, "it has 10 class names for 9 classes"),
        ({"classes": 2**70}, "class names"),
        ({"seen": 3}, "seen is 3"),
        ({"inputs": 7}, "inputs are described by"),
        ({"inputs": {}}, "inputs are described by"),
        ({"experiment": None}, ""),
        ({"experiment": []}, ""),
        ({"experiment": {"model": "resnet20", "image_size": 10**30}}, ""),
    ],
    ids=str,
)
def test_a_header_of_other_values_is_refused(content, tmp_path, change, because):
    forged = with_header(content, lambda header: header.update(change))
    assert because in refused(forged, tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "because"),
    [
        ({"class_names": ["a", "b"]}, "it has 2 class names for 10 classes"),
        ({"class_names": [1] * 10}, "class_names is not a list of names"),
        ({"mean": [1, 2]}, "mean is not a list of 3 numbers"),
        ({"mean": [1, 2, float("nan")]}, "finite numbers"),
        ({"std": [1, 2, "3"]}, "finite numbers"),
        ({"std": [1, 2, 0]}, "above 0"),
        ({"image_size": 16}, "its image_size is 16, but its Experiment has 8"),
        ({"image_size": "8"}, "image_size is '8'"),
        ({"channels": "BGR"}, "channels is 'BGR': RGB"),
    ],
    ids=str,
)
def test_what_it_takes_is_checked(content, tmp_path, change, because):
    forged = with_header(content, lambda header: header["inputs"].update(change))
    assert because in refused(forged, tmp_path / "m")


@pytest.mark.parametrize(
    "change",
    [
        {"model": "vit_huge_patch14_224", "image_size": 224},
        {"model": "eva_giant_patch14_224", "image_size": 224},
        {"model": "vit192x100000"},
        {"model": "vit99999999999"},
        {"model": "mixer9999999x200"},
        {"model": "resnet20x99999999"},
        {"switch": {"experts": 10**7}},
        {"model": "vit32x1", "image_size": 10**9},
    ],
    ids=str,
)
def test_a_huge_model_is_refused_at_once(content, tmp_path, change):
    """Before it is built: in two seconds, without memory."""

    def name(header: dict[str, Any]) -> None:
        header["experiment"] |= {"model": "vit32x1", "quantize": None, "prune": None, **change}
        header["inputs"]["image_size"] = header["experiment"]["image_size"]

    import timm  # the first import costs a second  # noqa: F401

    peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    refused(with_header(content, name), tmp_path / "m")
    assert time.thread_time() - began < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000


def test_deep_json_is_refused(content, tmp_path):
    deep = "[" * 100_000
    refused(
        with_header(content, lambda header: header.update(seen="DEEP"), deep=deep), tmp_path / "m"
    )


class TestSafetensors:
    @pytest.fixture(scope="class")
    def whole(self, tmp_path_factory: pytest.TempPathFactory) -> bytes:
        return stored_models(tmp_path_factory.mktemp("forged"))["safetensors"].read_bytes()

    def forged(self, whole: bytes, change: Callable[[dict[str, Tensor]], None]) -> bytes:
        tensors = tensors_of(whole)
        change(tensors)
        size = struct.unpack("<Q", whole[:8])[0]
        return sealed(serialize(tensors, metadata=json.loads(whole[8 : 8 + size])["__metadata__"]))

    @pytest.mark.parametrize(
        ("change", "because"),
        [
            (lambda t: t.update({VALUES: t[VALUES][:-1]}), "do not match its mask"),
            (lambda t: t.update({VALUES: t[VALUES].view(1, -1)}), "do not match its mask"),
            (lambda t: t.update({VALUES: t[VALUES].double()}), "is another model"),
            (lambda t: t.update({BITS: t[BITS][:-1]}), "does not fit its shape"),
            (lambda t: t.update({BITS: t[BITS].float()}), "does not fit its shape"),
            (lambda t: t.pop(BITS), ""),
            (lambda t: t.update({"head.bias": t["head.bias"].half()}), "differ in head.bias"),
            (lambda t: t.update({"head.bias": torch.zeros(1)}), "differ in head.bias"),
            (lambda t: t.pop("head.bias"), "differ in head.bias"),
        ],
    )
    def test_tensors_that_do_not_fit_are_refused(self, whole, tmp_path, change, because):
        assert because in refused(self.forged(whole, change), tmp_path / "m")

    def test_a_sparse_shape_asks_for_no_memory(self, whole, tmp_path):
        def grow(header: dict[str, Any]) -> None:
            header["sparse"] = {name: [10**6, 10**6] for name in header["sparse"]}

        assert "is another model" in refused(with_header(whole, grow), tmp_path / "m")

    def test_a_header_longer_than_any_is_refused_unread(self, whole, tmp_path):
        long = struct.pack("<Q", 1 << 40) + whole[8:]
        assert "its header is too large" in refused(long, tmp_path / "m")

    def test_a_file_of_the_first_version_is_refused_in_one_line(self, whole, tmp_path):
        model = build("resnet20", classes=10, image_size=8)
        old = serialize(model.state_dict(), metadata={"raybench": '{"classes": 10}'})
        assert "its version is 1, and this code reads 2" in refused(old, tmp_path / "m")

    def test_the_checksum_is_compared_before_anything_is_decoded(
        self, whole, tmp_path, monkeypatch
    ):
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("decoded")

        monkeypatch.setattr(sparse_safetensors, "safe_open", refuse)
        for place in (100, 8 + 30, len(whole) // 2, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            assert "AssertionError" not in refused(bytes(damaged), tmp_path / "m")
            assert "decoded" not in refused(bytes(damaged), tmp_path / "m")
