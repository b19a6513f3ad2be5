"""Every shipped space begins with its baseline, or its tables have nothing to compare with."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import optuna
import pytest

from raybench.experiment import Experiment, compatible, technique_types

SPACES = sorted((Path(__file__).parent.parent / "search_spaces").glob("*.py"))


def executed(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"baseline_of_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sampled(module: ModuleType, count: int) -> list[Experiment]:
    """What the enqueued parameters give, then random ones."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for params in module.enqueue:
        study.enqueue_trial(params)
    return [module.space(study.ask()) for _ in range(count)]


@pytest.fixture(autouse=True)
def _no_start(monkeypatch):
    for variable in ("RAYBENCH_START", "RAYBENCH_TEACHER"):
        monkeypatch.delenv(variable, raising=False)


def test_there_are_spaces():
    assert len(SPACES) > 10


@pytest.mark.parametrize("path", SPACES, ids=[path.stem for path in SPACES])
def test_the_first_trial_is_the_baseline(path):
    (baseline,) = sampled(executed(path), 1)
    assert baseline.techniques() == []
    assert not baseline.pipeline.on
    assert baseline.parallel.strategy == "ddp"
    assert not baseline.parallel.checkpointing
    if baseline.family in ("strategies", "pipeline"):
        assert baseline.parallel.workers == 1


def test_a_model_of_each_has_one_in_the_pruning_space():
    module = executed(next(path for path in SPACES if path.stem == "pruning"))
    dense = sampled(module, len(module.enqueue))
    assert [one.model for one in dense] == ["resnet20", "resnet44"]
    assert all(one.techniques() == [] for one in dense)


def test_any_technique_mixes_four_of_them_in_one_space():
    module = executed(next(path for path in SPACES if path.stem == "any_technique"))
    experiments = [compatible(one) for one in sampled(module, 200)]
    assert {one.family for one in experiments} == {"switch_vit"}
    sets = {frozenset(name for name, _ in one.techniques()) for one in experiments}
    names = {"switch", "monarch", "prune", "quantize"}
    assert names <= technique_types().keys()
    assert len(sets) == 2 ** len(names)
