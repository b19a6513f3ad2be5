"""Monarch for a part of the training: when layers change, and what that leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from slow_monarch import assert_close, matrix
from small_monarch import ATTENTION, FEED_FORWARD, plain, replaced, tiny
from torch import nn

from raybench import artefact
from raybench.experiment import Experiment, Parallel
from raybench.techniques import Progress
from raybench.techniques.layers.monarch_linear import project
from raybench.techniques.monarch import Monarch
from raybench.training.first_model import first_model
from raybench.training.measure import count_parameters
from raybench.training.trainer import train

MODES = pytest.mark.parametrize("mode", ["dense_to_sparse", "sparse_to_dense"])


def longer(monarch: Monarch | None) -> Experiment:
    """Four epochs of 2 steps."""
    return tiny(monarch=monarch, recipe=replace(tiny().recipe, epochs=4, batch=64))


def ended(experiment: Experiment, path: Path) -> nn.Module:
    """The model that the run leaves in its file."""
    for _ in train(experiment, store=path):
        pass
    return artefact.load(path)


class TestModes:
    @pytest.mark.parametrize(
        ("switch_at", "after"), [(0.0, 0), (0.25, 1), (0.26, 2), (0.75, 3), (0.8, 4), (1.0, 4)]
    )
    def test_change_at_the_first_epoch_that_begins_at_or_after(self, switch_at, after):
        """After so many of four epochs; four is at the end of the last one."""
        for mode, before, then in (("sparse_to_dense", 8, 0), ("dense_to_sparse", 0, 8)):
            technique = Monarch(mode=mode, switch_at=switch_at)
            model = plain()
            technique.reshape(model)
            found = []
            for epoch in range(4):
                changed = technique.restructure(model, Progress(5 * epoch, 20), {})
                assert changed == (epoch == after)
                found.append(len(replaced(model)))
            technique.finish(model, {})
            assert [*found, len(replaced(model))] == [before] * after + [then] * (5 - after)

    @pytest.mark.slow
    @MODES
    @pytest.mark.parametrize(("switch_at", "after"), [(0.0, 0), (0.5, 2), (0.51, 3), (1.0, 3)])
    def test_columns_of_the_loop_follow(self, mode, switch_at, after):
        """The last epoch's are of the finished model."""
        experiment = longer(Monarch(mode=mode, switch_at=switch_at))
        epochs = [epoch.metrics for epoch in train(experiment)]
        before, then = (8, 0) if mode == "sparse_to_dense" else (0, 8)
        counts = [metrics["structured_layers"] for metrics in epochs]
        assert counts == [before] * after + [then] * (4 - after)
        assert [bool(metrics["factors"]) for metrics in epochs] == [count > 0 for count in counts]
        # Bytes are those of the file that stopping would leave: of the same model all along.
        sizes = [metrics["model_bytes"] for metrics in epochs]
        assert sizes == [sizes[-1]] * 4
        structured, dense = plain(), plain()
        Monarch().reshape(structured)
        last = structured if mode == "dense_to_sparse" else dense
        assert epochs[-1]["parameters"] == count_parameters(last)
        assert count_parameters(structured) < count_parameters(dense)

    @pytest.mark.parametrize(("epochs", "after"), [(1, 0), (2, 1), (4, 3)])
    def test_the_last_epoch_trains_what_comes_out(self, epochs, after):
        """A change after 0.8 of training would come after the last epoch's start."""
        for mode, then in (("sparse_to_dense", 0), ("dense_to_sparse", 8)):
            technique, model = Monarch(mode=mode, switch_at=0.8), plain()
            technique.reshape(model)
            for epoch in range(epochs):
                progress = Progress(5 * epoch, 5 * epochs, epoch_steps=5)
                assert technique.restructure(model, progress, {}) == (epoch == after)
            assert len(replaced(model)) == then
            one_shot, model = Monarch(mode=mode, switch_at=1.0), plain()
            one_shot.reshape(model)
            assert not one_shot.restructure(model, Progress(5 * after, 5 * epochs, 5), {})

    def test_the_loop_tells_how_long_an_epoch_is(self):
        """In two epochs, a change at 0.8 is one at 0.5, and not one after training."""
        losses = {}
        for switch_at in (0.5, 0.8, 1.0):
            *_, last = train(tiny(monarch=Monarch(mode="dense_to_sparse", switch_at=switch_at)))
            losses[switch_at] = last.metrics["test_loss"]
        assert losses[0.8] == losses[0.5] != losses[1.0]

    def test_multiplied_out_the_outputs_do_not_jump(self):
        technique = Monarch(mode="sparse_to_dense", switch_at=0.5)
        model, x = plain(), torch.randn(5, 3, 8, 8)
        technique.reshape(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(3):
            F.cross_entropy(model(torch.randn(8, 3, 8, 8)), torch.randint(10, (8,))).backward()
            optimizer.step()
        before, products = model(x), {n: matrix(model.get_submodule(n)) for n in replaced(model)}
        assert not technique.restructure(model, Progress(4, 10), {})
        assert technique.restructure(model, Progress(5, 10), {})
        assert_close(model(x), before, 1e-5)
        assert set(products) == ATTENTION | FEED_FORWARD
        for name, product in products.items():
            assert_close(model.get_submodule(name).weight, product, 1e-5, name)

    @pytest.mark.parametrize("switch_at", [0.5, 1.0])
    def test_sparse_to_dense_leaves_the_plain_models_file(self, tmp_path, switch_at):
        experiment = tiny(monarch=Monarch(mode="sparse_to_dense", switch_at=switch_at))
        *_, last = train(experiment, store=tmp_path / "m")
        with safe_open(tmp_path / "m", framework="pt") as file:
            assert set(file.keys()) == set(plain().state_dict())
        back = artefact.load(tmp_path / "m")
        assert [type(module) for module in back.modules()] == [type(m) for m in plain().modules()]
        assert last.metrics["model_bytes"] == (tmp_path / "m").stat().st_size
        # What a plain run starts from, and its first weights are these.
        started = first_model(tiny(start_from=str(tmp_path / "m")), 10)
        x = torch.randn(5, 3, 8, 8)
        assert torch.equal(started.eval()(x), back(x))

    def test_dense_to_sparse_leaves_factors(self, tmp_path):
        model = ended(tiny(monarch=Monarch(mode="dense_to_sparse")), tmp_path / "m")
        assert replaced(model) == ATTENTION | FEED_FORWARD
        assert model(torch.randn(2, 3, 8, 8)).isfinite().all()

    def test_a_projection_at_once_begins_at_the_trained_weights(self, tmp_path):
        dense = ended(tiny(), tmp_path / "dense")
        monarch = Monarch(blocks=2, mode="dense_to_sparse", switch_at=0.0)
        still = replace(tiny().recipe, lr=1e-30)  # the steps are too small to round to any
        experiment = tiny(monarch=monarch, start_from=str(tmp_path / "dense"), recipe=still)
        actual = ended(replace(experiment, seed=3), tmp_path / "monarch")
        assert replaced(actual) == ATTENTION | FEED_FORWARD
        for name in replaced(actual):
            wanted = project(dense.get_submodule(name), 2)
            assert_close(matrix(actual.get_submodule(name)), matrix(wanted), 1e-5, name)
        stay = {n: t for n, t in actual.state_dict().items() if n in dense.state_dict()}
        assert len(stay) == len(dense.state_dict()) - 8
        assert all(torch.equal(tensor, dense.state_dict()[name]) for name, tensor in stay.items())

    def test_at_the_end_a_dense_run_is_projected(self, tmp_path):
        dense = ended(tiny(), tmp_path / "dense")
        actual = ended(tiny(monarch=Monarch(mode="dense_to_sparse", switch_at=1.0)), tmp_path / "m")
        for name in ATTENTION | FEED_FORWARD:
            wanted = project(dense.get_submodule(name), 4)
            assert_close(matrix(actual.get_submodule(name)), matrix(wanted), 1e-5, name)
        assert torch.equal(actual.head.weight, dense.head.weight)

    def test_at_the_end_a_monarch_run_is_multiplied_out(self, tmp_path):
        sparse = ended(tiny(monarch=Monarch()), tmp_path / "sparse")
        actual = ended(tiny(monarch=Monarch(mode="sparse_to_dense", switch_at=1.0)), tmp_path / "m")
        for name in ATTENTION | FEED_FORWARD:
            weight = actual.get_submodule(name).weight
            assert_close(weight, matrix(sparse.get_submodule(name)), 1e-5, name)
        assert torch.equal(actual.head.weight, sparse.head.weight)

    @pytest.mark.slow
    @MODES
    def test_a_run_resumed_before_or_after_the_change_ends_bit_for_bit_alike(self, mode, tmp_path):
        """The change is at the start of the third epoch of four."""
        experiment = longer(Monarch(mode=mode, switch_at=0.5))
        whole = []
        for epoch in train(experiment, store=tmp_path / "whole"):
            whole.append(epoch.metrics)
            if not epoch.last:
                epoch.save(tmp_path / f"{epoch.number}.pt")
        counts = [metrics["structured_layers"] for metrics in whole]
        assert counts[0] == counts[1] != counts[2] == counts[3]
        wanted = artefact.load(tmp_path / "whole").state_dict()
        for number in (1, 2, 3):
            rest = train(experiment, resume=tmp_path / f"{number}.pt", store=tmp_path / "resumed")
            metrics = [epoch.metrics for epoch in rest]
            assert len(metrics) == 4 - number
            for name in ("loss", "validation_loss", "lr", "model_bytes", "structured_layers"):
                assert [m[name] for m in metrics] == [m[name] for m in whole[number:]], name
            assert metrics[-1]["test_loss"] == whole[-1]["test_loss"]
            actual = artefact.load(tmp_path / "resumed").state_dict()
            assert all(torch.equal(actual[name], tensor) for name, tensor in wanted.items())

    def test_the_modes_begin_as_what_they_are(self):
        """The first epoch of each is that of the plain run, or of the one with factors."""
        first = {
            mode: next(train(tiny(monarch=monarch))).metrics["loss"]
            for mode, monarch in [
                ("dense", None),
                *[(m, Monarch(mode=m)) for m in ("from_scratch", "dense_to_sparse")],
                ("sparse_to_dense", Monarch(mode="sparse_to_dense")),
            ]
        }
        assert first["dense_to_sparse"] == first["dense"]
        assert first["sparse_to_dense"] == first["from_scratch"] != first["dense"]


# --- Two workers --------------------------------------------------------------------------------


def fitted(mode: str, workers: int) -> dict[str, Any]:
    """What a run gives in this process, alone or as one of the workers."""
    monarch = Monarch(mode=mode, switch_at=0.5)
    experiment = tiny(monarch=monarch, parallel=Parallel(workers=workers))
    losses, counts = [], []
    for epoch in train(experiment):
        losses += [epoch.metrics["loss"], epoch.metrics["validation_loss"]]
        counts.append(epoch.metrics["structured_layers"])
        last = epoch.metrics
    return {"losses": losses, "counts": counts, "test_loss": last["test_loss"]}


def worker(rank: int) -> dict[str, Any]:
    """What a run of each mode gives in one of two workers."""
    return {mode: fitted(mode, 2) for mode in ("sparse_to_dense", "dense_to_sparse")}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The findings of two workers: this process and a second one."""
    return gloo.together(worker, tmp_path_factory.mktemp("workers"))


@pytest.mark.workers
@pytest.mark.timeout(150)
@MODES
def test_two_workers_change_the_layers_as_one_does(together, mode):
    alone = fitted(mode, 1)
    assert alone["counts"] == ([8, 0] if mode == "sparse_to_dense" else [0, 8])
    assert len(alone["losses"]) == 4
    for found in together:
        assert found[mode]["counts"] == alone["counts"]
        assert found[mode]["losses"] == pytest.approx(alone["losses"], abs=1e-4)
        assert found[mode]["test_loss"] == pytest.approx(alone["test_loss"], abs=1e-4)
    # And as each other, to the last bit.
    assert together[0][mode]["losses"] == together[1][mode]["losses"]
