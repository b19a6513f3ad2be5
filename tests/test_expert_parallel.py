"""Experts spread over two workers against all of them in one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
from expert_workers import (
    BATCH,
    EXPERIMENT,
    EXPERTS,
    OPTIMIZERS,
    SWITCH,
    TOKENS,
    WIDTH,
    WORKERS,
    measured,
    resumed,
    worker,
)
from torch import Tensor

from raybench import artefact
from raybench.experiment import Parallel
from raybench.techniques.layers.experts import Experts
from raybench.techniques.switch import Switch, mixtures

pytestmark = [pytest.mark.workers, pytest.mark.timeout(150)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: tmp_path_factory.mktemp(name) for name in ("alone", "together")}


@pytest.fixture(scope="module")
def alone(folders) -> dict[str, Any]:
    return measured(folders["alone"], None, seed=0)


@pytest.fixture(scope="module")
def together(folders, alone) -> list[dict[str, Any]]:
    """The findings of two workers: this process and a second one."""
    folder = folders["together"]
    return gloo.together(worker, folder, folder, folders["alone"], workers=WORKERS)


def part(whole: Tensor, own: Tensor, rank: int) -> Tensor:
    """Of a gradient of one process what worker `rank` has."""
    return whole if whole.shape == own.shape else whole.chunk(WORKERS)[rank]


class TestGradients:
    @pytest.mark.parametrize("case", ["top1", "top2", "forced"])
    def test_they_equal_those_of_one_process_on_the_whole_batch(self, alone, together, case):
        expected = alone[case]["gradients"]
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        for rank, found in enumerate(together):
            assert found[case]["rows"] == [EXPERTS // WORKERS] * 2
            assert found[case]["loss"] == pytest.approx(alone[case]["loss"], rel=1e-6)
            assert set(found[case]["gradients"]) == set(expected)
            for name, gradient in found[case]["gradients"].items():
                wanted = part(expected[name], gradient, rank)
                assert (gradient - wanted).abs().max() < 1e-5 * largest, name

    def test_experts_gradients_are_there_to_compare(self, alone):
        for case in ("top1", "top2"):
            for name, gradient in alone[case]["gradients"].items():
                if name.startswith("blocks.0.mlp.experts."):  # the last one's come by one token
                    assert (gradient.flatten(1).abs().amax(1) > 0).all(), (case, name)

    def test_a_worker_without_rows_has_gradients_of_zero(self, together):
        for rank, found in enumerate(together):
            for name, gradient in found["forced"]["gradients"].items():
                if ".experts." in name:
                    assert gradient[0].any() == (rank == 0)
                    assert not gradient[1:].any()


class TestSentBytes:
    # The 80 rows of worker 1 go to worker 0 and come back; their gradients too; in two blocks.
    ROWS = 4 * (BATCH // WORKERS) * TOKENS * 2

    def test_rows_of_a_forced_routing(self, together):
        for found in together:
            assert found["forced"]["sent"] == self.ROWS * WIDTH * 4 / WORKERS
            assert found["forced"]["again"] == 0  # counted anew for each epoch

    def test_bf16_rows_travel_as_bf16(self, together):
        for found in together:
            assert found["forced bf16"] == self.ROWS * WIDTH * 2 / WORKERS

    def test_a_second_choice_sends_more(self, together):
        for found in together:
            assert 0 < found["top1"]["sent"] < found["top2"]["sent"]

    def test_fit_reports_gradients_and_rows(self, alone, together):
        first = alone["fit"]["metrics"][0]
        assert first["sent_bytes_per_step"] == 0
        dense = [p for n, p in alone["top1"]["gradients"].items() if ".experts." not in n]
        reduced = sum(4 * p.numel() for p in dense)  # 2 (W - 1) / W is 1
        most = self.ROWS * WIDTH * 4  # were every row to go to the other worker
        for found in together:
            for metrics in found["fit"]["metrics"]:
                assert type(metrics["sent_bytes_per_step"]) is int
                assert reduced < metrics["sent_bytes_per_step"] < reduced + most


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
class TestTraining:
    def test_losses_equal_those_of_one_process(self, alone, together, optimizer):
        expected = alone["trained"][optimizer]
        for found in together:
            for name in ("losses", "next"):
                assert found["trained"][optimizer][name] == pytest.approx(expected[name], rel=1e-5)

    def test_whole_is_the_model_of_one_process(self, alone, together, optimizer):
        expected = alone["trained"][optimizer]["whole"]
        for found in together:
            whole = found["trained"][optimizer]["whole"]
            assert list(whole) == list(expected)
            for name, tensor in whole.items():
                assert tensor.shape == expected[name].shape
                if ".attn.qkv.bias" not in name:  # a key's bias has no gradient but rounding
                    assert torch.allclose(tensor, expected[name], rtol=1e-3, atol=1e-4), name

    def test_a_state_of_two_workers_goes_on_in_one(self, together, folders, optimizer):
        losses = resumed(OPTIMIZERS[optimizer], folders["together"] / f"{optimizer}.pt")
        assert losses == pytest.approx(together[0]["trained"][optimizer]["next"], rel=1e-5)

    def test_a_state_of_two_workers_goes_on_without_the_strategy(
        self, together, folders, optimizer
    ):
        plain = replace(OPTIMIZERS[optimizer], parallel=Parallel())
        losses = resumed(plain, folders["together"] / f"{optimizer}.pt")
        assert losses == pytest.approx(together[0]["trained"][optimizer]["next"], rel=1e-5)

    def test_a_state_of_one_process_goes_on_in_two_workers(self, alone, together, optimizer):
        expected = alone["trained"][optimizer]["next"]
        for found in together:
            assert found["trained"][optimizer]["next of other"] == pytest.approx(expected, rel=1e-5)


class TestFit:
    EXACT = ("parameters", "flops", "dead_experts", "dropped_share")
    CLOSE = ("loss", "validation_loss", "test_loss", "router_entropy", "balance_loss", "z_loss")

    def test_metrics_agree_with_those_of_one_process(self, alone, together):
        expected = alone["fit"]["metrics"]
        for found in together:
            assert len(found["fit"]["metrics"]) == len(expected) == 2
            for metrics, other in zip(found["fit"]["metrics"], expected, strict=True):
                assert set(metrics) == set(other)
                for name in set(self.EXACT) & set(other):
                    assert metrics[name] == other[name], name
                for name in set(self.CLOSE) & set(other):
                    assert metrics[name] == pytest.approx(other[name], rel=1e-4), name
                assert metrics["load_cv"] == pytest.approx(other["load_cv"], abs=1e-2)
                assert metrics["accuracy"] == pytest.approx(other["accuracy"], abs=0.01)

    def test_a_resumed_run_ends_alike(self, together):
        for found in together:
            for name in ("loss", "validation_loss", "test_loss", "test_accuracy"):
                assert found["fit"]["resumed"][name] == found["fit"]["metrics"][-1][name], name

    def test_a_trial_goes_on_from_what_the_first_worker_saved(self, together):
        for found in together:
            assert found["interrupted"] == [m["loss"] for m in found["fit"]["metrics"]]

    def test_the_stored_file_is_of_a_plain_model(self, together, folders):
        path = folders["together"] / "model.safetensors"
        assert path.stat().st_size == together[0]["fit"]["metrics"][-1]["model_bytes"]
        model = artefact.load(path)
        assert [type(m.experts) for m in mixtures(model)] == [Experts, Experts]
        assert [len(m.experts) for m in mixtures(model)] == [EXPERTS, EXPERTS]
        assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


class TestRefusals:
    @pytest.mark.parametrize("switch", [None, Switch(experts=0)])
    def test_without_experts(self, switch):
        with pytest.raises(ValueError, match=r"parallel\.strategy .* set switch\.experts"):
            replace(EXPERIMENT, switch=switch)

    def test_experts_that_do_not_divide_over_the_workers(self):
        four = Parallel(workers=4, strategy="expert")
        with pytest.raises(ValueError, match=r"switch\.experts 6 .* 4 workers"):
            replace(EXPERIMENT, switch=replace(SWITCH, experts=6), parallel=four)
        assert replace(EXPERIMENT, parallel=four).parallel == four

    def test_data_parallel_workers_hold_any_number_of_experts(self):
        replace(EXPERIMENT, switch=replace(SWITCH, experts=3), parallel=Parallel(workers=2))
