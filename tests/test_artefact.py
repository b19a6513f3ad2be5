"""The file of a trained model: the same bits come back, from less than the dense bytes."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruned_networks import assert_same_bits, pruned
from safetensors.torch import save_file

from raybench import artefact
from raybench.artefact.sparse_safetensors import ORDER, SAFETENSORS
from raybench.data import Inputs
from raybench.models import build
from raybench.models.resnet_cifar import ResNetCifar
from raybench.techniques.monarch import Monarch
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from raybench.techniques.switch import Switch
from trainers.pruning import base


def takes(classes: int) -> Inputs:
    names = tuple(f"kind {number} ä" for number in range(classes))
    mean, std = (33.3, 100.0 / 3, 1.5), (1.0, 2.0, 0.1)
    return Inputs(class_names=names, mean=mean, std=std, image_size=base.image_size)


class TestRoundTrip:
    @settings(max_examples=12)
    @given(
        sparsity=st.floats(0, 1),
        seed=st.integers(0, 1000),
        scope=st.sampled_from(["global", "layer"]),
    )
    def test_gives_back_every_bit(self, tmp_path_factory, sparsity, seed, scope):
        model = pruned(sparsity, seed, scope)
        path = tmp_path_factory.mktemp("artefact") / "model.safetensors"
        artefact.save(model, base, 10, path)
        assert_same_bits(model, artefact.load(path))

    def test_of_channels_last_weights_is_the_same(self, tmp_path):
        model = pruned(0.5).to(memory_format=torch.channels_last)
        artefact.save(model, base, 10, tmp_path / "m")
        assert_same_bits(model, artefact.load(tmp_path / "m"))

    def test_keeps_values_that_are_no_numbers(self, tmp_path):
        model = pruned(0.9)
        model.conv1.weight.data.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, 1e-42])
        artefact.save(model, base, 10, tmp_path / "m")
        back = artefact.load(tmp_path / "m").conv1.weight.view(-1)
        assert back[0].isnan()
        assert back[1:3].tolist() == [torch.inf, pytest.approx(1e-42)]

    def test_gives_a_plain_module_that_is_ready_to_use(self, tmp_path):
        model = pruned(0.7).eval()
        artefact.save(model, base, 10, tmp_path / "m")
        back = artefact.load(str(tmp_path / "m"))
        assert type(back) is ResNetCifar
        assert not back.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in back.modules())
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(back(x), model(x))

    def test_needs_nothing_but_the_file(self, tmp_path):
        """Model, classes and techniques stand in its header."""
        experiment = replace(base, model="resnet44", image_size=8, prune=Prune())
        model = build("resnet44", classes=3, image_size=8)
        artefact.save(model, experiment, 3, tmp_path / "m")
        assert_same_bits(model, artefact.load(tmp_path / "m"))


class TestAbout:
    @pytest.mark.parametrize("bits", [0, 4])
    def test_tells_experiment_classes_inputs_and_what_was_seen(self, tmp_path, bits):
        experiment = replace(base, quantize=Quantize(bits=bits)) if bits else base
        model = artefact.skeleton(experiment, 10)
        told = {"seen": "AAAA digits", "inputs": takes(10)}
        size = artefact.save(model, experiment, 10, tmp_path / "m", **told)
        assert artefact.is_packed(tmp_path / "m") == bool(bits)
        assert artefact.about(tmp_path / "m") == (experiment, 10, "AAAA digits", takes(10))
        assert size == artefact.encoded_bytes(model, experiment, 10, **told)

    @pytest.mark.parametrize("bits", [0, 4])
    def test_many_class_names_take_few_bytes(self, tmp_path, bits):
        experiment = replace(base, quantize=Quantize(bits=bits)) if bits else base
        model = artefact.skeleton(experiment, 1000)
        without = artefact.encoded_bytes(model, experiment, 1000)
        size = artefact.save(model, experiment, 1000, tmp_path / "m", inputs=takes(1000))
        assert artefact.about(tmp_path / "m").inputs == takes(1000)
        assert size == artefact.encoded_bytes(model, experiment, 1000, inputs=takes(1000))
        assert size - without < 6000 < len("".join(takes(1000).class_names))

    def test_what_it_takes_adds_a_few_hundred_bytes(self):
        model = pruned(0.5)
        without = artefact.encoded_bytes(model, base, 10)
        assert artefact.encoded_bytes(model, base, 10, inputs=takes(10)) - without < 400


class TestSize:
    def test_is_what_encode_says(self, tmp_path):
        model = pruned(0.6)
        said = artefact.save(model, base, 10, tmp_path / "deep" / "er" / "m")
        path = tmp_path / "deep" / "er" / "m"
        assert said == path.stat().st_size == len(artefact.encode(model, base, 10))
        assert list(path.parent.iterdir()) == [path]

    def test_shrinks_with_every_zero(self):
        sizes = [len(artefact.encode(pruned(s), base, 10)) for s in (0, 0.2, 0.4, 0.6, 0.8, 0.95)]
        assert sizes == sorted(set(sizes), reverse=True)
        assert sizes[0] / sizes[3] == pytest.approx(2.3, abs=0.1)

    @pytest.mark.parametrize("sparsity", [0.0, 0.01, 0.03])
    def test_few_zeros_are_stored_as_they_are(self, sparsity):
        """The bits would cost more than the zeros save."""
        model = pruned(sparsity, scope="layer")
        content = artefact.encode(model, base, 10)
        header = struct.unpack("<Q", content[:8])[0]
        raw = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        assert len(content) == 8 + header + raw


def every_dtype() -> torch.nn.Module:
    """Tensors of all types that safetensors sorts, named against that order; some half zero."""
    module = torch.nn.Module()
    for name, dtype in zip("hgfedcba", SAFETENSORS, strict=True):
        module.register_buffer(name, torch.ones(3, 5).to(dtype))
        module.register_buffer(f"{name}_zeros", torch.eye(6).to(dtype))
        module.register_buffer(f"{name}_one", torch.ones(()).to(dtype))
    return module


class TestCountedBytes:
    @pytest.mark.parametrize("sparsity", [0.0, 0.02, 0.5, 0.95])
    @pytest.mark.parametrize("scope", ["global", "layer"])
    def test_of_a_pruned_network(self, sparsity, scope):
        model = pruned(sparsity, scope=scope)
        content = artefact.encode(model, base, 10)
        assert artefact.encoded_bytes(model, base, 10) == len(content)

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"switch": Switch(experts=3, blocks="all", shared_expert=True)},
            {"monarch": Monarch(blocks=4)},
            {"monarch": Monarch(blocks=4), "prune": Prune(), "start_from": 'ä"\\/\n\x7f ſ.pt'},
        ],
        ids=["plain", "switch", "monarch", "odd letters"],
    )
    def test_of_a_vit(self, values):
        experiment = replace(base, model="vit32x2", image_size=8, **values)
        model = build("vit32x2", classes=10, image_size=8)
        for _, technique in experiment.techniques():
            technique.reshape(model)
        for classes in range(10, 14):  # the header is padded to 8 bytes: look at several lengths
            lengthened = replace(experiment, data="x" * classes)
            content = artefact.encode(model, lengthened, classes)
            assert artefact.encoded_bytes(model, lengthened, classes) == len(content)

    def test_with_what_the_model_has_seen(self):
        model = pruned(0.5)
        for length in range(9):
            seen = "AAAA" * 40 + " digits"[: length - 1]
            content = artefact.encode(model, base, 10, seen=seen)
            assert artefact.encoded_bytes(model, base, 10, seen=seen) == len(content)

    def test_of_every_type(self):
        model = every_dtype()
        assert len(model.state_dict()) == 3 * len(SAFETENSORS)
        content = artefact.encode(model, base, 10)
        assert artefact.encoded_bytes(model, base, 10) == len(content)
        header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
        kinds = [entry["dtype"] for name, entry in header.items() if name != "__metadata__"]
        assert set(kinds) == set(ORDER)


class TestRestore:
    """Into a model that is there already, in place."""

    def test_fills_every_tensor_where_it_lies(self, tmp_path):
        stored, model = pruned(0.5, seed=1), pruned(0.0, seed=2)
        artefact.save(stored, base, 10, tmp_path / "m")
        model.to(memory_format=torch.channels_last).train()
        places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
        artefact.restore(model, tmp_path / "m")
        assert_same_bits(stored, model)
        assert {n: tensor.data_ptr() for n, tensor in model.state_dict().items()} == places
        assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
        assert model.training

    @pytest.mark.parametrize(
        ("model", "classes", "differs"),
        [
            ("resnet32", 10, "layer1.3"),
            ("resnet20_b", 10, "layer2.0.shortcut"),
            ("resnet20", 100, "fc."),
        ],
    )
    def test_refuses_another_model(self, tmp_path, model, classes, differs):
        other = build(model, classes=classes, image_size=32)
        artefact.save(pruned(0.5), base, 10, tmp_path / "m")
        with pytest.raises(ValueError, match="is another model: they differ in") as error:
            artefact.restore(other, tmp_path / "m")
        assert f"differ in {differs}" in str(error.value)

    def test_refuses_factors_for_a_dense_layer(self, tmp_path):
        dense = build("vit32x2", classes=10, image_size=8)
        factored = build("vit32x2", classes=10, image_size=8)
        Monarch().reshape(factored)
        artefact.save(factored, base, 10, tmp_path / "m")
        with pytest.raises(ValueError, match=r"they differ in blocks\.0\.attn\.proj\."):
            artefact.restore(dense, tmp_path / "m")

    def test_refuses_what_holds_no_trained_model(self, tmp_path):
        model = pruned(0.0)
        (tmp_path / "empty").touch()
        (tmp_path / "text").write_text("not a model")
        save_file(model.state_dict(), tmp_path / "without a header")
        save_file(model.state_dict(), tmp_path / "of another header", metadata={"format": "pt"})
        torch.save(model.state_dict(), tmp_path / "pickled")
        names = sorted(path.name for path in tmp_path.iterdir())
        assert len(names) == 5
        for name in [*names, "missing", "."]:
            with pytest.raises(ValueError, match="holds no trained model") as error:
                artefact.restore(model, tmp_path / name)
            assert str(tmp_path / name) in str(error.value)

    def test_refuses_a_truncated_file(self, tmp_path):
        path, model = tmp_path / "m", pruned(0.5)
        artefact.save(model, base, 10, path)
        whole = path.read_bytes()
        for length in (0, 8, 500, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match="holds no trained model"):
                artefact.restore(model, path)
