"""What cannot act together is declared by a technique, and refused with its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raybench.experiment import (
    Experiment,
    Parallel,
    Pipeline,
    Recipe,
    compatible,
    conflicts,
    technique_types,
)
from raybench.experiment.compatible import declarations, executions, parts
from raybench.techniques import Apart
from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from raybench.techniques.prune import Prune

PLAIN = Experiment(family="pruning", model="vit32x2")


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives `Prune` declarations for a test."""
    return lambda *aparts: monkeypatch.setattr(Prune, "apart", aparts)


def test_a_technique_that_is_off_stands_beside_everything():
    for changes in (
        {"monarch": Monarch(blocks=0), "low_rank": LowRank()},
        {"monarch": Monarch(), "low_rank": LowRank(blocks=0)},
        {"monarch": Monarch(), "low_rank": None},
    ):
        experiment = replace(PLAIN, **changes)
        assert compatible(experiment) is experiment


def test_two_techniques_for_the_same_layers_are_refused():
    with pytest.raises(ValueError, match=r"monarch and low_rank cannot .* use only one of them"):
        compatible(replace(PLAIN, monarch=Monarch(), low_rank=LowRank()))


def test_a_declaration_counts_for_every_kind_of_part(declared):
    beside = {
        "monarch": {"monarch": Monarch()},
        "zero2": {"parallel": Parallel(strategy="zero2")},
        "checkpointing": {"parallel": Parallel(checkpointing=True)},
        "pipeline": {"pipeline": Pipeline(chunks=2)},
    }
    for other, changes in beside.items():
        declared(Apart(other, "it is Tuesday; wait"))
        experiment = replace(PLAIN, prune=Prune(scope="layer"), **changes)
        assert conflicts(experiment) == [
            f"prune and {other} cannot be combined: it is Tuesday; wait"
        ]
        assert conflicts(replace(experiment, prune=None)) == []
        for name, without in beside.items():
            if name != other:
                assert not conflicts(replace(PLAIN, prune=Prune(scope="layer"), **without))


def test_a_condition_sees_the_whole_experiment(declared):
    declared(Apart("monarch", "why; what to do", lambda e: e.recipe.epochs > 3, "epochs above 3"))
    both = replace(PLAIN, prune=Prune(), monarch=Monarch())
    assert conflicts(replace(both, recipe=Recipe(epochs=4)))
    assert not conflicts(replace(both, recipe=Recipe(epochs=3)))


def test_every_conflict_is_listed(declared):
    declared(Apart("monarch", "one"), Apart("zero2", "two"))
    both = replace(PLAIN, prune=Prune(), monarch=Monarch(), parallel=Parallel(strategy="zero2"))
    assert len(conflicts(both)) == 2
    with pytest.raises(ValueError, match="one"):
        compatible(both)


def test_stages_and_workers_exclude_each_other():
    for pipeline in (Pipeline(stages=2), Pipeline(chunks=2)):
        experiment = replace(PLAIN, pipeline=pipeline, parallel=Parallel(workers=2))
        with pytest.raises(ValueError, match=r"pipeline.chunks with 2 parallel.workers"):
            compatible(experiment)
        assert compatible(replace(experiment, parallel=Parallel()))


def test_a_pipeline_is_of_any_family():
    assert compatible(replace(PLAIN, pipeline=Pipeline(stages=2, chunks=4)))


def test_the_parts_of_an_experiment():
    assert parts(PLAIN) == {"ddp"}
    spread = replace(PLAIN, parallel=Parallel(checkpointing=True), pipeline=Pipeline(chunks=2))
    assert parts(replace(spread, prune=Prune())) == {"ddp", "checkpointing", "pipeline", "prune"}


@pytest.mark.parametrize("name", technique_types())
def test_declarations_are_complete(name):
    """Each names a part that there is, and says why and what to do, in one line."""
    names = {*technique_types(), *executions()} - {name, "ddp"}
    for apart in technique_types()[name].apart:
        assert apart.other in names
        assert apart.reason
        assert "\n" not in apart.reason
        assert not apart.reason.endswith(".")
        assert ";" in apart.reason, f"{name}, {apart.other}: no advice"
        assert bool(apart.when) == bool(apart.condition), "a condition is also told in words"


def test_a_declaration_of_either_side_is_seen_from_both():
    assert [*declarations("monarch", "low_rank")] == [*declarations("low_rank", "monarch")] != []
