"""Runs that begin at timm's weights, and what is refused as such."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from small_monarch import tiny

from raybench.training import loop
from raybench.training.trainer import train

TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights as timm has them, for 224 pixels and 1000 classes."""
    path = tmp_path_factory.mktemp("pretrained") / "weights.pth"
    torch.manual_seed(5)
    torch.save(timm.create_model(TINY).state_dict(), path)
    return path


class TestPretrained:
    @pytest.mark.parametrize("image_size", [224, 8])
    def test_a_file_of_them_is_where_a_run_begins(self, pretrained, image_size):
        values = {"model": TINY, "image_size": image_size}
        model = loop.first_model(tiny(start_from=f"timm:{pretrained}", **values), 10)
        weights, state = torch.load(pretrained), model.state_dict()
        assert set(state) == set(weights)
        # Another image size has other patches and positions, other classes another head.
        anew = {"head.weight", "head.bias"}
        if image_size != 224:
            anew |= {"patch_embed.proj.weight", "pos_embed"}
        assert {name for name in state if state[name].shape != weights[name].shape} == anew
        assert all(torch.equal(state[n], tensor) for n, tensor in weights.items() if n not in anew)
        assert model(torch.randn(2, 3, image_size, image_size)).shape == (2, 10)
        fresh = loop.first_model(tiny(**values), 10).state_dict()
        assert not torch.equal(fresh["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.fc1.weight"])

    @pytest.mark.usefixtures("no_training")
    def test_a_missing_file_is_refused_before_anything_trains(self, tmp_path):
        experiment = tiny(model=TINY, start_from=f"timm:{tmp_path}/nowhere.pth")
        with pytest.raises(ValueError, match=r"there is no file .*nowhere\.pth"):
            next(train(experiment))

    @pytest.mark.parametrize("content", [b"no weights", {"a": torch.zeros(3)}, [1, 2]])
    def test_a_file_of_something_else_is_refused(self, tmp_path, content):
        path = tmp_path / "other.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(ValueError, match=r"other\.pth"):
            loop.first_model(tiny(model=TINY, start_from=f"timm:{path}"), 10)

    def test_no_source_is_refused(self):
        with pytest.raises(ValueError, match="timm:hub"):
            loop.first_model(tiny(model=TINY, start_from="timm:"), 10)

    @pytest.mark.parametrize("model", ["resnet20", "vit32x2"])
    def test_a_model_that_timm_has_not_is_refused(self, pretrained, model):
        with pytest.raises(ValueError, match=f"no model '{model}'"):
            loop.first_model(tiny(model=model, start_from=f"timm:{pretrained}"), 10)
