"""Which layers Monarch and low-rank factors replace, and sizes that do not divide."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_monarch import ATTENTION, FEED_FORWARD, replaced, tiny
from torch import nn

from raybench.models import build
from raybench.techniques import Progress
from raybench.techniques.layers.monarch_linear import MonarchLinear, project
from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from raybench.training.trainer import train

CHANNELS = {f"blocks.{i}.mlp_channels.fc{n}" for i in range(2) for n in (1, 2)}
TOKENS = {f"blocks.{i}.mlp_tokens.fc{n}" for i in range(2) for n in (1, 2)}

TECHNIQUES = pytest.mark.parametrize("technique", [Monarch(), LowRank()], ids=["monarch", "low"])


@TECHNIQUES
class TestSelection:
    @pytest.mark.parametrize(
        ("model", "layers", "leave_out", "wanted"),
        [
            ("vit32x2", "attention", "", ATTENTION),
            ("vit32x2", "feed_forward", "", FEED_FORWARD),
            ("vit32x2", "both", "", ATTENTION | FEED_FORWARD),
            ("vit32x2", "all", "", ATTENTION | FEED_FORWARD),
            ("mixer32x2", "feed_forward", "", CHANNELS),
            ("mixer32x2", "both", "", CHANNELS),
            ("mixer32x2", "all", "", CHANNELS | TOKENS),
            ("mixer32x2", "all", "*.fc2", {n for n in CHANNELS | TOKENS if n.endswith("1")}),
            ("vit32x2", "both", "*.attn.*", FEED_FORWARD),
            ("vit32x2", "feed_forward", "blocks.0.*", {"blocks.1.mlp.fc1", "blocks.1.mlp.fc2"}),
            ("vit32x2", "attention", "blocks.0.*, *.proj,", {"blocks.1.attn.qkv"}),
        ],
    )
    def test_replaces_exactly_those(self, technique, model, layers, leave_out, wanted):
        net = build(model, classes=10, image_size=32)
        before = dict(net.named_parameters())
        replace(technique, layers=layers, leave_out=leave_out).reshape(net)
        assert replaced(net) == wanted
        stay = {name: p for name, p in before.items() if name.rpartition(".")[0] not in wanted}
        now = dict(net.named_parameters())
        assert all(now[name] is parameter for name, parameter in stay.items())
        assert net(torch.randn(2, 3, 32, 32)).isfinite().all()

    def test_zero_blocks_is_the_plain_model(self, technique):
        model = build("vit32x2", classes=10, image_size=8)
        before, modules = torch.get_rng_state(), list(model.modules())
        neutral = replace(technique, blocks=0)
        neutral.reshape(model)
        assert not neutral.restructure(model, Progress(1, 1), {})
        neutral.finish(model, {})
        assert list(model.modules()) == modules
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(
        ("model", "values", "said"),
        [
            ("vit32x2", {"leave_out": "*"}, ["'both' without '*'", "VisionTransformer has"]),
            ("vit32x2", {"leave_out": "*.attn.*,*.mlp.*"}, ["no linear layer to replace"]),
            ("mixer32x2", {"layers": "attention"}, ["'attention'", "MlpMixer has"]),
            ("resnet20", {}, ["'both'", "ResNetCifar has no linear layer"]),
            ("resnet20", {"layers": "all"}, ["'all'", "ResNetCifar has no linear layer"]),
            (
                "vit32x2",
                {"leave_out": "blocks.0.*,blocks.2.*"},
                ["leave_out 'blocks.2.*' matches no layer", "blocks.0.attn.qkv"],
            ),
            ("vit32x2", {"layers": "attention", "leave_out": "*.fc1"}, ["'*.fc1' matches no"]),
        ],
    )
    def test_what_leaves_nothing_or_names_nothing_is_refused(self, technique, model, values, said):
        net = build(model, classes=10, image_size=32)
        with pytest.raises(ValueError, match=said[0].replace("*", r"\*")) as error:
            replace(technique, **values).reshape(net)
        assert all(part in str(error.value) for part in said), error.value
        assert "\n" not in str(error.value)
        assert not replaced(net)


class TestSizesThatDoNotDivide:
    @pytest.mark.parametrize(
        ("inputs", "outputs", "blocks", "said"),
        [
            (32, 96, 5, "5 blocks do not divide the 32 inputs of blocks.3.fc; 4 do"),
            (32, 96, 12, "12 blocks do not divide the 32 inputs of blocks.3.fc; 8 do"),
            (8, 6, 4, "4 blocks do not divide the 6 outputs of blocks.3.fc; 2 do"),
            (13, 26, 4, "4 blocks do not divide the 13 inputs of blocks.3.fc; 13 do"),
            (17, 34, 2, "17 inputs of blocks.3.fc; no number from 2 to 16 does"),
        ],
    )
    def test_are_refused_with_the_nearest_number_that_fits(self, inputs, outputs, blocks, said):
        dense = nn.Linear(inputs, outputs)
        for make in (MonarchLinear, project):
            with pytest.raises(ValueError, match=said):
                make(dense, blocks, "blocks.3.fc")

    @pytest.mark.usefixtures("no_training")
    @pytest.mark.parametrize("mode", ["from_scratch", "dense_to_sparse", "sparse_to_dense"])
    def test_are_refused_before_anything_trains(self, mode):
        experiment = tiny(monarch=Monarch(blocks=5, mode=mode))
        with pytest.raises(ValueError, match=r"32 inputs of blocks\.0\.attn\.qkv; 4 do$"):
            next(train(experiment))

    def test_a_layer_that_does_not_fit_stays_dense(self):
        model = build("vit36x2", classes=10, image_size=8)  # the hidden width is 144
        model.blocks[1].mlp.fc1 = nn.Linear(36, 145)
        model.blocks[1].mlp.fc2 = nn.Linear(145, 36)
        technique = Monarch(blocks=3)
        technique.reshape(model)
        assert len(replaced(model)) == 6
        assert not {"blocks.1.mlp.fc1", "blocks.1.mlp.fc2"} & replaced(model)
        assert {name.rpartition(".")[0] for name in technique.acts_on(model)} == replaced(model)
