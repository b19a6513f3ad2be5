"""Where mixtures begin: at weights of their own, the dense ones' or a stored model's."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from slow_switch import assert_close
from small_switch import PLAIN, tiny
from timm.layers import Mlp
from torch import nn

from raybench import artefact
from raybench.experiment import Experiment
from raybench.models import build
from raybench.techniques.layers.experts import Experts
from raybench.techniques.switch import Mixture, Switch
from raybench.training.trainer import train


class TestFirstWeights:
    @pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (5, 1), (5, 2)])
    def test_upcycled_experts_equal_the_dense_feed_forward(self, experts, top_k):
        dense = Mlp(10, 24)
        chosen = Switch(experts=experts, top_k=top_k, upcycle=True, gate="normalized", jitter=0.1)
        mixture, x = Mixture(dense, chosen), torch.randn(2, 9, 10)
        for copied in (mixture, mixture.eval()):
            assert_close(copied(x), dense(x), 1e-6)

    def test_a_gate_of_probability_scales_the_copies_down(self):
        dense, x = Mlp(10, 24), torch.randn(7, 10)
        mixture = Mixture(dense, replace(PLAIN, upcycle=True))
        p = mixture.router(x).softmax(-1).amax(-1, keepdim=True)
        assert_close(mixture(x), p * dense(x), 1e-6)

    def test_otherwise_every_expert_has_weights_of_its_own(self):
        dense = Mlp(64, 256)
        experts = Mixture(dense, PLAIN).experts
        assert len(experts) == 4
        for number, weight in (("fc1", experts.weight1), ("fc2", experts.weight2)):
            like = dense.get_parameter(f"{number}.weight").detach()
            assert weight.shape == (4, *like.shape)
            assert len({float(one.detach().sum()) for one in [*weight, like]}) == 5
            for one in weight:
                assert float(one.detach().std()) == pytest.approx(float(like.std()), rel=0.1)
        assert torch.equal(experts.bias1, dense.fc1.bias.expand(4, -1))

    def test_the_dense_one_is_copied_and_not_shared(self):
        dense = Mlp(6, 8)
        before = copy.deepcopy(dense.state_dict())
        experts = Experts(dense, 3)
        for parameter in experts.parameters():
            parameter.data.zero_()
        assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())

    def test_a_shared_expert_is_the_dense_one_itself(self):
        dense = Mlp(6, 8)
        assert Mixture(dense, replace(PLAIN, shared_expert=True)).shared is dense
        assert Mixture(dense, PLAIN).shared is None


# --- Stored, and started from -------------------------------------------------------------------


class TestStored:
    @pytest.mark.parametrize("top_k", [1, 2])
    def test_gives_the_same_logits(self, tmp_path, top_k):
        chosen = replace(PLAIN, top_k=top_k, capacity_factor=0.5, shared_expert=True)
        experiment = tiny(switch=chosen)
        model = build("vit32x2", classes=10, image_size=8)
        chosen.reshape(model)
        model(torch.randn(2, 3, 8, 8))  # the tally is not empty
        artefact.save(model, experiment, 10, tmp_path / "m")
        back, x = artefact.load(tmp_path / "m"), torch.randn(5, 3, 8, 8)
        assert not back.training
        assert torch.equal(back(x), model.eval()(x))


class TestStartFrom:
    @pytest.fixture
    def dense(self, tmp_path: Path) -> Path:
        """A plain ViT after an epoch."""
        for _ in train(tiny(), store=tmp_path / "dense.safetensors"):
            pass
        return tmp_path / "dense.safetensors"

    def first_weights(self, experiment: Experiment, tmp_path: Path) -> nn.Module:
        """The model before its first step, in effect: the steps are too small to round to any."""
        recipe = replace(experiment.recipe, lr=1e-30)
        for _ in train(replace(experiment, recipe=recipe), store=tmp_path / "now.safetensors"):
            pass
        return artefact.load(tmp_path / "now.safetensors")

    def test_a_plain_model_goes_on(self, dense, tmp_path):
        now = self.first_weights(tiny(start_from=str(dense), seed=3), tmp_path)
        before = artefact.load(dense).state_dict()
        assert all(torch.equal(before[name], value) for name, value in now.state_dict().items())
        fresh = self.first_weights(tiny(seed=3), tmp_path).state_dict()
        assert not torch.equal(fresh["head.weight"], before["head.weight"])

    def test_upcycled_experts_begin_as_the_dense_feed_forward(self, dense, tmp_path):
        switch = replace(PLAIN, blocks="1", upcycle=True, gate="normalized")
        now = self.first_weights(tiny(start_from=str(dense), switch=switch, seed=3), tmp_path)
        model = artefact.load(dense)
        before = model.state_dict()
        same = {name: value for name, value in now.state_dict().items() if name in before}
        assert len(same) == len(before) - 4
        assert all(torch.equal(before[name], value) for name, value in same.items())
        for number in "12":
            for kind in ("weight", "bias"):
                stacked = now.blocks[1].mlp.experts.get_parameter(f"{kind}{number}")
                one = before[f"blocks.1.mlp.fc{number}.{kind}"]
                assert torch.equal(stacked, one.expand_as(stacked))
        x = torch.randn(6, 3, 8, 8)
        assert_close(now(x), model(x), 1e-5)

    def test_experts_that_are_not_upcycled_leave_the_rest(self, dense, tmp_path):
        switch = replace(PLAIN, blocks="1", shared_expert=True)
        now = self.first_weights(tiny(start_from=str(dense), switch=switch), tmp_path)
        before = artefact.load(dense).state_dict()
        assert torch.equal(now.head.weight, before["head.weight"])
        assert torch.equal(now.blocks[1].mlp.shared.fc1.weight, before["blocks.1.mlp.fc1.weight"])
        for one in now.blocks[1].mlp.experts.weight1:
            assert not torch.equal(one, before["blocks.1.mlp.fc1.weight"])


@pytest.mark.usefixtures("no_training")
class TestStartFromIsRefused:
    def refused(self, experiment: Experiment) -> str:
        with pytest.raises(ValueError, match=re.escape(experiment.start_from)) as error:
            next(iter(train(experiment)))
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_a_missing_file(self, tmp_path):
        message = self.refused(tiny(start_from=str(tmp_path / "nowhere.safetensors")))
        assert "there is no file" in message

    def test_a_folder(self, tmp_path):
        assert "is a folder" in self.refused(tiny(start_from=str(tmp_path)))

    @pytest.mark.parametrize("content", [b"", b"not a model", b"\x02\0\0\0\0\0\0\0{}"])
    def test_a_file_of_another_kind(self, tmp_path, content):
        (tmp_path / "m").write_bytes(content)
        message = self.refused(tiny(start_from=str(tmp_path / "m")))
        assert "holds no trained model" in message

    @pytest.mark.parametrize(
        ("model", "switch", "differs"),
        [
            ("vit32x3", None, "blocks.2"),
            ("vit48x2", None, ""),
            ("resnet20", None, ""),
            ("vit32x2", PLAIN, "blocks.0.mlp"),
        ],
    )
    def test_another_model(self, tmp_path, model, switch, differs):
        other = build(model, classes=10, image_size=8)
        if switch:
            switch.reshape(other)
        experiment = tiny(model=model, switch=switch)
        artefact.save(other, experiment, 10, tmp_path / "m")
        message = self.refused(tiny(start_from=str(tmp_path / "m")))
        assert "is another model" in message
        assert f"they differ in {differs}" in message

    def test_the_same_model_of_other_classes(self, tmp_path):
        other = build("vit32x2", classes=100, image_size=8)
        artefact.save(other, tiny(), 100, tmp_path / "m")
        message = self.refused(tiny(start_from=str(tmp_path / "m")))
        assert "is another model" in message
        assert "head." in message
