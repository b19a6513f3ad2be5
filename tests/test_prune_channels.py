"""Structured pruning: what is cut, what is left, and that the file knows it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from raybench import artefact
from raybench.experiment import compatible
from raybench.models import build
from raybench.techniques import Progress
from raybench.techniques.prune import Prune
from raybench.techniques.prune_channels import PruneChannels, channels, cut
from raybench.techniques.quantize import Quantize
from raybench.training.measure import count_flops, count_parameters
from raybench.training.trainer import train


def widths(model: nn.Module) -> list[int]:
    return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]


def test_a_cut_network_is_smaller_in_every_way_and_its_widths_are_multiples_of_16():
    model = build("resnet20_b", classes=7, image_size=8)
    before = widths(model), count_parameters(model), count_flops(model, 8)
    cut(model, 0.5, 16)
    after = widths(model), count_parameters(model), count_flops(model, 8)
    assert all(width % 16 == 0 for width in after[0])
    assert set(after[0]) == {16, 32}  # 16 channels stay, of 32 and of 64 one half
    assert after[1] < 0.35 * before[1]
    assert after[2] < 0.6 * before[2]
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize(("ratio", "left"), [(0.1, 64), (0.3, 48), (0.5, 32), (0.9, 16)])
def test_what_is_left_is_rounded_up(ratio, left):
    model = build("resnet20_b", classes=10, image_size=8)
    cut(model, ratio, 16)
    assert model.fc.in_features == left
    assert model.fc.out_features == 10
    assert set(widths(model)) <= {16, 32, 48, 64}


def test_widths_do_not_depend_on_the_weights():
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build("resnet20_b", classes=10, image_size=8)
        cut(model, 0.4, 16)
        found.append({name: value.shape for name, value in model.state_dict().items()})
    assert found[0] == found[1]


def test_the_smallest_channels_go():
    model = build("resnet20x2_b", classes=10, image_size=8)
    inner = model.layer1[0].conv1
    with torch.no_grad():
        for layer in (inner, model.layer1[0].bn1):
            layer.weight[5:21] *= 1e-3
        model.layer1[0].conv2.weight[:, 5:21] *= 1e-3
        kept = torch.cat([inner.weight[:5], inner.weight[21:]]).sum((1, 2, 3))
    cut(model, 0.5, 16)
    # The inputs of the layer are cut too, so channels are known by their order of size alone.
    assert inner.weight.shape[0] == len(kept) == 16
    assert inner.weight.flatten(1).norm(dim=1).min() > 0.1


def test_tracing_draws_no_random_numbers_and_changes_neither_modes_nor_statistics():
    model = build("resnet20_b", classes=10, image_size=8).train()
    model.layer2.eval()
    modes = [module.training for module in model.modules()]
    model.to(memory_format=torch.channels_last)
    state = torch.get_rng_state()
    cut(model, 0.5, 16)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert not model.bn1.num_batches_tracked
    assert model.layer2[1].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in model.parameters())


def test_the_cut_is_made_once_at_an_epochs_start():
    technique = PruneChannels(ratio=0.5, at=0.4)
    model = build("resnet20_b", classes=10, image_size=8)
    technique.reshape(model)
    memory: dict[str, torch.Tensor] = {}
    assert not technique.restructure(model, Progress(3, 10), memory)
    assert technique.measure(model, memory) == {"channels": 1.0}
    before = channels(model)
    assert technique.restructure(model, Progress(5, 10), memory)
    left = channels(model)
    assert not technique.restructure(model, Progress(7, 10), memory)
    technique.finish(model, memory)
    assert channels(model) == left
    assert 0.5 < left / before < 0.7
    assert technique.measure(model, memory) == {"channels": left / before}


def test_finish_makes_the_cut_that_is_still_to_come():
    technique = PruneChannels(ratio=0.5, at=1.0)
    model = build("resnet20_b", classes=10, image_size=8)
    technique.reshape(model)
    technique.finish(model, {})
    assert model.fc.in_features == 32


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [Quantize(bits=4, begin=0.3), Quantize(begin=0.9), None])
def test_with_the_other_techniques_a_file_holds_the_smaller_network(tiny, tmp_path, quantize):
    """Steps are cut as well, whether the cut comes before the quantized part or in it."""
    path = tmp_path / "model.safetensors"
    whole = replace(tiny, model="resnet20_b")
    experiment = replace(
        whole,
        prune_channels=PruneChannels(at=0.5),
        prune=Prune(final_sparsity=0.6, begin=0.6, end=0.9, frequency=1),
        quantize=quantize,
    )
    first, last = train(compatible(experiment), store=path)
    assert first.metrics["channels"] == 1.0
    model = artefact.load(path)
    assert 0.5 < last.metrics["channels"] < 0.7
    assert last.metrics["sparsity"] >= 0.6
    assert last.metrics["parameters"] == count_parameters(model)
    assert last.metrics["flops"] == count_flops(model, 8)
    assert model.fc.in_features == 32
    if quantize:
        assert len(model.layer3[0].conv1.weight_step) == 32
        assert model.layer3[0].conv1.weight_bits == quantize.bits


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"ratio": 1.0}, "ratio is 1.0"),
            ({"ratio": -0.1}, "ratio is -0.1"),
            ({"round_to": 0}, "round_to is 0"),
            ({"at": 2.0}, "at is 2.0"),
        ],
    )
    def test_values_out_of_range(self, arguments, says):
        with pytest.raises(ValueError, match=says):
            PruneChannels(**arguments)

    def test_shortcuts_that_pad_get_advice(self):
        with pytest.raises(ValueError, match="shortcut B, such as resnet20_b"):
            PruneChannels().reshape(build("resnet20", classes=10, image_size=8))

    def test_a_transformer_gets_advice(self):
        with pytest.raises(ValueError, match=r"VisionTransformer \(blocks.0.attn splits its width"):
            PruneChannels().reshape(build("vit32x2", classes=10, image_size=32))

    def test_a_ratio_that_cuts_nothing_is_told(self):
        with pytest.raises(ValueError, match="leaves every width as it is"):
            PruneChannels(ratio=0.1).reshape(build("resnet20_b", classes=10, image_size=8))
