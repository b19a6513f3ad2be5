"""Every strategy on the stand-in for a GPU, as the first of two workers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu_stand_in import stand_in
from gpu_workers import two_workers
from torch import Tensor

from raybench import data
from raybench.experiment import Parallel
from raybench.parallel import STRATEGIES, exchange, powersgd
from raybench.techniques.switch import Switch
from raybench.training.replicated import Replicated

OUTSIDE_STEPS = {"measure.py", "meter.py", "exchange.py", "replicated.py", "ddp.py"}
"""Files that wait by a name: for the clock, a probed step, the epoch's loss."""

IN_STEPS = {
    "expert": {"expert.py"},  # an exchange of tokens must know the lengths of its messages
    "powersgd": {"powersgd.py"},  # torch's hook ends with torch.cuda.synchronize
    "zero3_offload": {"loss_scale.py"},  # the optimizer on the CPU waits for the gradients
}
"""Strategies whose every step waits, by a name, and where; nobody can do without these waits."""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_strategy_waits_or_mixes_devices(tiny, monkeypatch, strategy):
    monkeypatch.setattr(powersgd, "WARMUP", 2)
    spread = Parallel(workers=2, strategy=strategy)
    switch = Switch(experts=4, blocks="all") if strategy == "expert" else None
    experiment = replace(tiny, model="vit32x2", parallel=spread, switch=switch)
    images = data.load(experiment)
    with stand_in(monkeypatch) as watch, two_workers(monkeypatch, watch):
        run = Replicated(experiment, images)
        run.epoch(1)
        if strategy == "powersgd":  # torch draws the first thin matrices on the host, once a run
            assert all("powersgd.py" in fault for fault in watch.faults)
            watch.faults.clear()
            run.epoch(2)
    assert not watch.mixed
    assert not watch.faults
    files = {wait.rpartition(" ")[2].partition(":")[0] for wait in watch.waits}
    assert files <= OUTSIDE_STEPS | IN_STEPS.get(strategy, set())
    assert files >= IN_STEPS.get(strategy, set())


def plant(x: Tensor) -> None:
    x.sum().item()
    x + torch.ones(x.shape)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["powersgd", "zero3", "zero3_offload"])
def test_faults_in_a_strategys_own_reduction_are_found(tiny, monkeypatch, strategy):
    if strategy == "powersgd":
        reduced = powersgd.PowerSgd._reduced
        monkeypatch.setattr(
            powersgd.PowerSgd,
            "_reduced",
            lambda self, bucket: plant(bucket.buffer()) or reduced(self, bucket),
        )
    else:
        scatter = exchange.Exchange.reduce_scatter
        monkeypatch.setattr(
            exchange.Exchange,
            "reduce_scatter",
            lambda self, part, whole: plant(whole) or scatter(self, part, whole),
        )
    experiment = replace(
        tiny, model="vit32x2", parallel=Parallel(workers=2, strategy=strategy), subset=0.03
    )
    images = data.load(experiment)
    with stand_in(monkeypatch) as watch, two_workers(monkeypatch, watch):
        Replicated(experiment, images).epoch(1)
    assert any("reads a number" in fault for fault in watch.faults)
    assert watch.mixed
