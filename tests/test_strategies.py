"""Every way of spreading a step over two workers against one process with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
import torch.distributed as dist
from strategy_workers import (
    AFTER,
    BEFORE,
    CASES,
    EXACT,
    LOSSY,
    WORKERS,
    Run,
    fitted,
    measured,
    spread,
    worker,
)
from torch import Tensor

pytestmark = [pytest.mark.workers, pytest.mark.timeout(150)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: tmp_path_factory.mktemp(name) for name in ("alone", "together")}


@pytest.fixture(scope="module")
def alone(folders) -> dict[str, Any]:
    actual = {
        "parity": measured(folders["alone"], None, shift=0),
        "fit": fitted(folders["alone"], None, "ddp"),
    }
    dist.destroy_process_group()  # of one, that offloading wants
    return actual


@pytest.fixture(scope="module")
def together(folders, alone) -> list[dict[str, Any]]:
    folder = folders["together"]
    return gloo.together(worker, folder, folder, folders["alone"], workers=WORKERS)


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        if "qkv.bias" not in name:  # a key's bias has no gradient but rounding
            assert torch.allclose(found[name], tensor, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_one_process(alone, together, name):
    tolerance = LOSSY.get(name.split()[0], 1e-5)
    expected = alone["parity"][name]
    assert expected["losses"][-1] != expected["losses"][0]
    for found in together:
        for part in ("losses", "next"):
            own = found["parity"][name][part]
            assert own == pytest.approx(expected[part], rel=tolerance), part


@pytest.mark.parametrize("name", CASES)
def test_whole_is_the_model_of_one_process(alone, together, name):
    if name.split()[0] in EXACT:
        for found in together:
            close(found["parity"][name]["whole"], alone["parity"][name]["whole"])


@pytest.mark.parametrize("name", CASES)
def test_a_state_of_one_process_goes_on_in_two_workers(alone, together, name):
    tolerance = LOSSY.get(name.split()[0], 1e-5)
    for found in together:
        own = found["parity"][name]["next of other"]
        assert own == pytest.approx(alone["parity"][name]["next"], rel=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_a_state_of_two_workers_goes_on_in_one(together, folders, name):
    experiment, _ = CASES[name]
    run = Run(spread(experiment, "ddp"), 99)
    run.replicas.load(run.model, run.optimizer, torch.load(folders["together"] / f"{name}.pt"))
    tolerance = LOSSY.get(name.split()[0], 1e-5)
    expected = together[0]["parity"][name]["next"]
    assert run.steps(BEFORE, AFTER) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_states_have_one_form(together, folders, name):
    """The same names, shapes and memory formats as a plain optimizer's."""
    ours, plain = (torch.load(folders[w] / f"{name}.pt") for w in ("together", "alone"))
    assert list(ours["model"]) == list(plain["model"])
    states = [found["optimizer"] for found in (ours, plain)]
    numbers = [[group["params"] for group in state["param_groups"]] for state in states]
    assert numbers[0] == numbers[1]
    moments = [
        {(n, k): v.shape for n, own in state["state"].items() for k, v in own.items()}
        for state in states
    ]
    assert moments[0] == moments[1]


@pytest.mark.parametrize("strategy", [*EXACT, *LOSSY])
def test_counted_memory_is_that_of_theory(together, strategy):
    for found in together:
        held, wanted = (found["bytes"][strategy][part] for part in ("held", "theory"))
        assert set(held) == set(wanted)
        for kind, whole in wanted.items():
            assert held[kind] == pytest.approx(whole, rel=0.01, abs=8), kind


@pytest.mark.parametrize("strategy", [*EXACT, *LOSSY])
def test_sent_bytes_are_those_of_theory(together, strategy):
    for found in together:
        own = found["bytes"][strategy]
        assert own["sent"] == pytest.approx(own["sent in theory"], rel=0.01)


def held_most(together, strategy: str, kind: str) -> int:
    return max(found["bytes"][strategy]["held"][kind] for found in together)


@pytest.mark.parametrize(
    ("strategy", "halved"),
    [
        ("ddp", ""),
        ("zero1", "optimizer"),
        ("zero2", "optimizer gradients"),
        ("zero3", "optimizer gradients parameters"),
    ],
)
def test_what_each_stage_halves(together, strategy, halved):
    for kind in ("parameters", "gradients", "optimizer"):
        whole = held_most(together, "ddp", f"{kind}_bytes")
        own = held_most(together, strategy, f"{kind}_bytes")
        assert own / whole == pytest.approx(0.5 if kind in halved else 1.0, rel=0.01)


def test_compression_sends_less(together):
    sent = {name: found["sent"] for name, found in together[0]["bytes"].items()}
    assert sent["bf16_gradients"] == pytest.approx(sent["ddp"] / 2, rel=0.01)
    assert sent["powersgd"] < sent["bf16_gradients"]


CLOSE = ("loss", "validation_loss", "test_loss")


@pytest.mark.parametrize("name", ["zero2", "zero2 from one process", "zero3 from zero2"])
def test_epochs_are_those_of_one_process(alone, together, name):
    for found in together:
        wanted = alone["fit"][-len(found[name]) :]
        assert len(found[name]) == (2 if name == "zero2" else 1)
        for own, expected in zip(found[name], wanted, strict=True):
            for column in CLOSE:
                if column in expected:
                    assert own[column] == pytest.approx(expected[column], rel=1e-4), column


def test_parts_of_a_step_are_told(together):
    for found in together:
        for own in found["zero2"]:
            assert own["communication_s"] > 0
            assert own["waiting_s"] > 0
            assert own["compute_s"] > 0
            assert own["workers_used"] == WORKERS
            assert own["samples_per_s"] > 0


def test_one_process_neither_waits_nor_sends(alone):
    for own in alone["fit"]:
        assert own["communication_s"] == own["waiting_s"] == own["sent_bytes_per_step"] == 0
