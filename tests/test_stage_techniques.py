"""Techniques that act on each layer alone, and checkpointing, in a pipeline's stages."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_threads import Threads

from raybench import artefact, data
from raybench.experiment import Experiment, Parallel, Pipeline
from raybench.parallel.pipeline.part import of_part
from raybench.techniques.ema import Ema
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from raybench.training.loop import fit
from raybench.training.staged import Alone
from raybench.training.staged_runner import StagedRunner

PRUNE = Prune(final_sparsity=0.6, begin=0.1, end=0.7, frequency=2, scope="layer")
LOCAL: dict[str, dict[str, Any]] = {
    "prune": {"prune": PRUNE},
    "quantize": {"quantize": Quantize(bits=4, activation_bits=4, begin=0.4)},
    "ema": {"ema": Ema(decay=0.9)},
    "all": {
        "prune": PRUNE,
        "quantize": Quantize(bits=4, begin=0.4),
        "ema": Ema(decay=0.9),
    },
}


@pytest.fixture
def small(tiny: Experiment) -> Experiment:
    """ResNet-20 on 129 digits of 8x8 pixels: 2 epochs of 4 steps, in fp32."""
    return replace(tiny, recipe=replace(tiny.recipe, lr=0.05))


def run(experiment: Experiment, path: Path, **how: Any) -> dict[str, Any]:
    *_, last = fit(experiment, data.load(experiment), store=path, **how)
    return last.metrics


def same(one: Path, other: Path) -> bool:
    ours, theirs = (artefact.load(path).state_dict() for path in (one, other))
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


STAGED = partial(StagedRunner, make=Alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCAL)
def test_one_stage_of_one_chunk_trains_as_the_plain_loop_does(small, name, tmp_path):
    experiment = replace(small, **LOCAL[name])
    plain = run(experiment, tmp_path / "plain")
    staged = run(experiment, tmp_path / "staged", begin=STAGED)
    assert same(tmp_path / "plain", tmp_path / "staged")
    for column in ("test_loss", "accuracy", "sparsity", "weight_bits", "ema_distance"):
        assert plain.get(column) == staged.get(column)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCAL)
def test_in_chunks_they_have_their_effect(small, name, tmp_path):
    experiment = replace(small, pipeline=Pipeline(chunks=2), **LOCAL[name])
    last = run(experiment, tmp_path / "m", begin=STAGED)
    for technique in experiment.techniques():
        assert 0 < last[f"{technique[0]}_coverage"] <= 1
    if experiment.prune:
        assert last["sparsity"] == pytest.approx(0.6, abs=0.01)
    if experiment.quantize:
        assert last["weight_bits"] < 5
    if experiment.ema:
        assert last["ema_distance"] > 0
    assert last["model_bytes"] == (tmp_path / "m").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCAL)
def test_a_resumed_pipeline_ends_bit_for_bit_alike(small, name, tmp_path):
    experiment = replace(small, pipeline=Pipeline(chunks=2), **LOCAL[name])
    run(experiment, tmp_path / "whole", begin=STAGED)
    epochs = fit(experiment, data.load(experiment), begin=STAGED)
    next(epochs).save(tmp_path / "state.pt")
    epochs.close()
    run(experiment, tmp_path / "resumed", resume=tmp_path / "state.pt", begin=STAGED)
    assert same(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["corrected", "deferred"])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zero_bubble"])
def test_checkpointing_changes_no_bit(small, mode, schedule, tmp_path):
    pipeline = Pipeline(chunks=2, batch_norm=mode, schedule=schedule)
    experiment = replace(small, pipeline=pipeline)
    run(experiment, tmp_path / "plain", begin=STAGED)
    saving = replace(experiment, parallel=Parallel(checkpointing=True))
    run(saving, tmp_path / "saving", begin=STAGED)
    assert same(tmp_path / "plain", tmp_path / "saving")


def test_checkpointing_keeps_less(small):
    experiment = replace(small, pipeline=Pipeline(chunks=2))
    kept = []
    for checkpointing in (False, True):
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        on = replace(experiment, parallel=Parallel(checkpointing=checkpointing))
        epochs = fit(on, data.load(on), begin=STAGED)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            next(epochs)
        epochs.close()
        kept.append(saved)
    assert kept[1] < kept[0] / 2


TWO = partial(StagedRunner, make=Threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCAL)
def test_two_stages_train_as_one_process_does(small, name, tmp_path):
    experiment = replace(small, **LOCAL[name])
    plain = run(experiment, tmp_path / "plain")
    stages = replace(experiment, pipeline=Pipeline(stages=2, cuts="4"))
    staged = run(stages, tmp_path / "staged", begin=TWO)
    assert same(tmp_path / "plain", tmp_path / "staged")
    for column in ("test_loss", "sparsity", "weight_bits", "bits_by_layer"):
        assert plain.get(column) == staged.get(column)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCAL)
def test_two_stages_go_on_from_the_state_of_both(small, name, tmp_path):
    pipeline = Pipeline(stages=2, chunks=2, cuts="4")
    experiment = replace(small, pipeline=pipeline, **LOCAL[name])
    experiment = replace(experiment, recipe=replace(small.recipe, epochs=3))
    run(experiment, tmp_path / "whole", begin=TWO)
    epochs = fit(experiment, data.load(experiment), begin=TWO)
    next(epochs).save(tmp_path / "state.pt")
    epochs.close()
    epochs = fit(experiment, data.load(experiment), begin=TWO, resume=tmp_path / "state.pt")
    next(epochs).save(tmp_path / "again.pt")  # what was loaded must not stand in for the other's
    epochs.close()
    run(experiment, tmp_path / "resumed", begin=TWO, resume=tmp_path / "again.pt")
    assert same(tmp_path / "whole", tmp_path / "resumed")


def test_a_memory_loses_the_entries_of_other_stages():
    memory = {name: torch.zeros(()) for name in ("a.weight", "b.weight", "seen by b", "decay")}
    assert list(of_part(memory, ["a.weight"], ["a.weight", "b.weight"])) == ["a.weight", "decay"]
