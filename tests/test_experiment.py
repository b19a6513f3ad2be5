"""Experiment: a value with a stable name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest
from experiments import GOLDEN, GOLDEN_KEY, experiments, recipes
from hypothesis import given

from raybench.experiment import (
    Recipe,
    checked,
    columns,
    flatten,
    from_json,
    technique_types,
)
from raybench.techniques.distill import Distill
from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from raybench.techniques.prune_channels import PruneChannels
from raybench.techniques.quantize import Quantize
from raybench.techniques.switch import Switch


class TestValue:
    def test_hashable_and_frozen(self):
        twin = replace(GOLDEN, seed=0)
        assert len({GOLDEN, twin, replace(GOLDEN, seed=1)}) == 2
        with pytest.raises(FrozenInstanceError):
            GOLDEN.seed = 2

    @given(experiments)
    def test_json_round_trip(self, experiment):
        back = from_json(experiment.to_json())
        assert back == experiment
        assert hash(back) == hash(experiment)
        assert back.key() == experiment.key()
        assert checked(experiment) == experiment

    def test_techniques_are_listed_by_field_name(self):
        assert GOLDEN.techniques() == [("prune", GOLDEN.prune)]
        assert replace(GOLDEN, prune=None).techniques() == []
        both = replace(GOLDEN, switch=Switch())
        assert both.techniques() == [("switch", both.switch), ("prune", both.prune)]
        every = replace(
            both,
            distill=Distill(teacher="teacher.safetensors"),
            quantize=Quantize(),
            prune_channels=PruneChannels(),
            low_rank=LowRank(),
            monarch=Monarch(),
        )
        order = ["switch", "monarch", "low_rank", "prune_channels", "prune", "quantize"]
        order.append("distill")
        assert [name for name, _ in every.techniques()] == order


class TestKey:
    def test_equals_the_golden_literal(self):
        """A changed literal would orphan every sweep that lies on a disk."""
        assert GOLDEN.key() == GOLDEN_KEY

    @pytest.mark.workers
    def test_is_the_same_in_another_process(self):
        program = (
            "import sys; from raybench.experiment import from_json; "
            "print(from_json(sys.argv[1]).key())"
        )
        said = subprocess.run(
            [sys.executable, "-c", program, GOLDEN.to_json()],
            env={**os.environ, "PYTHONHASHSEED": "12345"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert said.stdout.strip() == GOLDEN.key()

    @given(experiments, experiments)
    def test_is_equal_only_for_equal_experiments(self, one, other):
        assert (one.key() == other.key()) == (one == other)

    @given(experiments, recipes)
    def test_counts_every_field_of_the_recipe(self, experiment, recipe):
        values = vars(recipe)
        for name in values:
            if name == "batch":
                continue  # has to divide over the workers
            changed = replace(experiment, recipe=replace(experiment.recipe, **{name: values[name]}))
            same = values[name] == getattr(experiment.recipe, name)
            assert (changed.key() == experiment.key()) == same

    def test_ignores_whether_one_is_written_as_a_float(self):
        for change in ({"lr": 1}, {"weight_decay": 0}):
            as_float = {name: float(value) for name, value in change.items()}
            one = replace(GOLDEN, recipe=Recipe(**change))
            other = replace(GOLDEN, recipe=Recipe(**as_float))
            assert one.key() == other.key()
            assert checked(one).key() == one.key()

    def test_tells_a_technique_with_all_defaults_from_none(self):
        off = replace(GOLDEN, **dict.fromkeys(technique_types()))
        on = {
            name: replace(off, **{name: kind()}).key() for name, kind in technique_types().items()
        }
        assert len({off.key(), *on.values()}) == 1 + len(on)

    def test_ignores_fields_at_their_defaults(self):
        """So that a field that is added later changes no key."""
        short = json.dumps({"family": "pruning", "model": "resnet20"})
        full = from_json(short).to_json()
        assert len(json.loads(full)) > 2
        assert from_json(short).key() == from_json(full).key()


class TestRow:
    @pytest.mark.slow
    @given(experiments)
    def test_flatten_has_exactly_the_columns(self, experiment):
        row = flatten(experiment)
        assert list(row) == list(columns())
        on = {name for name in technique_types() if getattr(experiment, name) is not None}
        for name, value in row.items():
            owner = name.partition(".")[0]
            if owner in technique_types() and owner not in on:
                assert value is None
            else:
                assert type(value) is columns()[name]

    @pytest.mark.parametrize("field", technique_types())
    def test_null_where_a_technique_is_off(self, field):
        """One off and the others on: what is null is the one's columns, all of them."""
        kinds = technique_types()
        everything = replace(GOLDEN, **{name: kind() for name, kind in kinds.items()})
        assert None not in flatten(everything).values()
        row = flatten(replace(everything, **{field: None}))
        off = [name for name in row if name.startswith(f"{field}.")]
        assert len(off) == len(vars(kinds[field]()))
        assert [name for name, value in row.items() if value is None] == off

    def test_values_stand_under_their_dotted_names(self):
        row = flatten(GOLDEN)
        assert row["model"] == "resnet44"
        assert row["recipe.lr"] == 0.25
        assert row["prune.scope"] == "layer"
        assert columns()["recipe.schedule"] is str
        assert columns()["prune.final_sparsity"] is float
