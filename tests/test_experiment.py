"""Experiment: a value with a stable name."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybench.experiment import (
    Experiment,
    Parallel,
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
from raybench.techniques.prune import Prune
from raybench.techniques.prune_channels import PruneChannels
from raybench.techniques.quantize import Quantize
from raybench.techniques.switch import Switch

GOLDEN = Experiment(
    family="pruning",
    model="resnet44",
    recipe=Recipe(epochs=3, lr=0.25),
    prune=Prune(final_sparsity=0.8, scope="layer"),
)
GOLDEN_KEY = "a24ee2255b36aae3"

shares = st.floats(0, 1, exclude_max=True)
recipes = st.builds(
    Recipe,
    epochs=st.integers(1, 1000),
    batch=st.integers(1, 256).map(lambda n: 4 * n),
    optimizer=st.sampled_from(["sgd", "adamw"]),
    lr=st.floats(1e-9, 1e3),
    momentum=shares,
    weight_decay=st.floats(0, 10),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    warmup=shares,
    label_smoothing=shares,
    crop=st.integers(0, 8),
    flip=st.booleans(),
    mixup=st.floats(0, 10),
    cutout=st.integers(0, 7),
    precision=st.sampled_from(["auto", "fp32", "bf16"]),
)
prunes = st.builds(
    Prune,
    final_sparsity=st.floats(0.5, 1, exclude_max=True),
    initial_sparsity=st.floats(0, 0.5),
    schedule=st.sampled_from(["polynomial", "constant"]),
    begin=st.floats(0, 0.5, exclude_max=True),
    end=st.floats(0.5, 1),
    power=st.floats(0.1, 10),
    frequency=st.integers(1, 1000),
    scope=st.sampled_from(["global", "layer"]),
)
switches = st.builds(
    Switch,
    experts=st.just(0) | st.integers(2, 1000),
    blocks=st.sampled_from(["all", "second", "last_two", "0", "1,3,5"]),
    top_k=st.sampled_from([1, 2]),
    capacity_factor=st.floats(0, math.inf, exclude_min=True),
    gate=st.sampled_from(["probability", "normalized"]),
    balance_loss=st.floats(0, 10),
    z_loss=st.floats(0, 10),
    jitter=shares,
    shared_expert=st.booleans(),
    upcycle=st.booleans(),
)
structured = {
    "blocks": st.just(0) | st.integers(2, 16),
    "layers": st.sampled_from(["both", "attention", "feed_forward", "all"]),
    "leave_out": st.just("") | st.text(max_size=5),
    "scale_lr": st.booleans(),
}
monarchs = st.builds(
    Monarch,
    **structured,
    mode=st.sampled_from(["from_scratch", "dense_to_sparse", "sparse_to_dense"]),
    switch_at=st.floats(0, 1),
)
low_ranks = st.builds(LowRank, **structured)
channel_cuts = st.builds(
    PruneChannels,
    ratio=shares,
    round_to=st.integers(1, 64),
    at=st.floats(0, 1),
)
quantizes = st.builds(
    Quantize,
    bits=st.just(0) | st.integers(2, 8),
    activation_bits=st.integers(2, 8) | st.just(32),
    ends_bits=st.integers(2, 8),
    begin=st.floats(0, 1),
    budget_bytes=st.integers(0, 2**40),
)
distills = st.builds(
    Distill,
    teacher=st.just("") | st.text(max_size=5),
    temperature=st.floats(0.1, 100),
    weight=st.floats(0, 100),
)
experiments = st.builds(
    Experiment,
    family=st.just("pruning"),
    model=st.text(max_size=5),
    data=st.text(max_size=5),
    image_size=st.integers(8, 224),
    subset=st.floats(0, 1, exclude_min=True),
    seed=st.integers(-5, 2**40),
    recipe=recipes,
    parallel=st.builds(Parallel, workers=st.sampled_from([1, 2, 4])),
    start_from=st.just("") | st.text(max_size=5),
    switch=st.none() | switches,
    monarch=st.none() | monarchs,
    low_rank=st.none() | low_ranks,
    prune_channels=st.none() | channel_cuts,
    prune=st.none() | prunes,
    quantize=st.none() | quantizes,
    distill=st.none() | distills,
)


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


class TestRefusals:
    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"modle": "resnet20"}, ["Experiment", "'modle'", "'model'"]),
            ({"recipe": {"epoch": 3}}, ["Experiment.recipe", "'epoch'", "'epochs'"]),
            ({"recipe": {"wieght_decay": 3}}, ["'wieght_decay'", "'weight_decay'"]),
            ({"prune": {"sparsity": 0.5}}, ["Experiment.prune", "'sparsity'", "_sparsity'"]),
            ({"prune": {"frequncy": 5}}, ["Experiment.prune", "'frequncy'", "'frequency'"]),
            ({"switch": {"expert": 5}}, ["Experiment.switch", "'expert'", "'experts'"]),
            ({"monarch": {"block": 4}}, ["Experiment.monarch", "'block'", "'blocks'"]),
            ({"low_rank": {"switch": 1}}, ["Experiment.low_rank", "'switch'", "scale_lr"]),
        ],
    )
    def test_unknown_field_names_the_nearest(self, values, words):
        with pytest.raises(ValueError, match="has no field") as error:
            from_json(json.dumps({"family": "pruning", "model": "resnet20", **values}))
        assert all(word in str(error.value) for word in words), error.value

    @pytest.mark.parametrize(
        ("values", "field", "kind"),
        [
            ({"seed": "1"}, "Experiment.seed", "int"),
            ({"seed": 1.5}, "Experiment.seed", "int"),
            ({"seed": None}, "Experiment.seed", "int"),
            ({"model": 20}, "Experiment.model", "str"),
            ({"recipe": {"lr": "0.1"}}, "Experiment.recipe.lr", "float"),
            ({"recipe": {"epochs": True}}, "Experiment.recipe.epochs", "int"),
            ({"recipe": {"flip": 1}}, "Experiment.recipe.flip", "bool"),
            ({"prune": {"frequency": 2.0}}, "Experiment.prune.frequency", "int"),
            ({"switch": {"experts": 2.0}}, "Experiment.switch.experts", "int"),
            ({"switch": {"blocks": 3}}, "Experiment.switch.blocks", "str"),
            ({"switch": {"upcycle": 1}}, "Experiment.switch.upcycle", "bool"),
            ({"monarch": {"blocks": 4.0}}, "Experiment.monarch.blocks", "int"),
            ({"monarch": {"switch_at": "0.5"}}, "Experiment.monarch.switch_at", "float"),
            ({"monarch": {"scale_lr": 1}}, "Experiment.monarch.scale_lr", "bool"),
            ({"low_rank": {"leave_out": None}}, "Experiment.low_rank.leave_out", "str"),
            ({"start_from": None}, "Experiment.start_from", "str"),
            ({"recipe": 3}, "Experiment.recipe", "Recipe"),
            ({"recipe": None}, "Experiment.recipe", "Recipe"),
            ({"prune": 0.5}, "Experiment.prune", "Prune"),
        ],
    )
    def test_wrong_type_names_field_and_type(self, values, field, kind):
        with pytest.raises(ValueError, match="must be of type") as error:
            from_json(json.dumps({"family": "pruning", "model": "resnet20", **values}))
        assert str(error.value).startswith(f"{field} is ")
        assert str(error.value).endswith(f"of type {kind}")

    def test_checked_finds_what_the_constructor_lets_through(self):
        wrong = Experiment(family="pruning", model="resnet20", recipe=Recipe(optimizer="adam"))
        with pytest.raises(ValueError, match=r"recipe\.optimizer is 'adam'; did you mean 'adamw'"):
            checked(wrong)
        wrong = replace(GOLDEN, monarch=Monarch(mode="dense_to_spare"))
        with pytest.raises(ValueError, match=r"monarch\.mode .*did you mean 'dense_to_sparse'"):
            checked(wrong)

    def test_a_missing_field_is_named(self):
        with pytest.raises(ValueError, match="'model'"):
            from_json('{"family": "pruning"}')

    @pytest.mark.parametrize(
        ("kind", "values"),
        [
            *[(Recipe, {name: 0}) for name in ("epochs", "batch", "lr")],
            *[(Recipe, {"lr": lr}) for lr in (-0.1, math.nan)],
            *[(Recipe, {n: -1}) for n in ("momentum", "weight_decay", "crop", "warmup")],
            *[(Recipe, {n: math.nan}) for n in ("momentum", "weight_decay", "warmup")],
            *[(Recipe, {n: 1.0}) for n in ("warmup", "label_smoothing")],
            (Parallel, {"workers": 0}),
            (Experiment, {"subset": 0.0}),
            (Experiment, {"subset": 1.5}),
            (Experiment, {"image_size": 4}),
            *[(Prune, {"final_sparsity": s}) for s in (1.0, -0.1, math.nan)],
            (Prune, {"initial_sparsity": 1.0}),
            (Prune, {"initial_sparsity": 0.7, "final_sparsity": 0.6}),
            *[(Prune, {"begin": b}) for b in (-0.1, 1.1, math.nan)],
            (Prune, {"end": 1.1}),
            (Prune, {"begin": 0.6, "end": 0.6}),
            (Prune, {"frequency": 0}),
            *[(Prune, {"power": p}) for p in (0.0, -1.0, math.nan)],
            (Switch, {"experts": -1}),
            *[(Switch, {"top_k": k}) for k in (-1, 0, 3)],
            (Switch, {"top_k": 2, "experts": 1}),
            *[(Switch, {"capacity_factor": c}) for c in (0.0, -1.0, math.nan)],
            *[(Switch, {n: -1.0}) for n in ("balance_loss", "z_loss", "jitter")],
            *[(Switch, {n: math.nan}) for n in ("balance_loss", "z_loss", "jitter")],
            *[(Switch, {n: math.inf}) for n in ("balance_loss", "z_loss")],
            (Switch, {"jitter": 1.0}),
            *[(Monarch, {"blocks": b}) for b in (1, 17, -1)],
            *[(Monarch, {"switch_at": s}) for s in (-0.1, 1.1, math.nan)],
            *[(LowRank, {"blocks": b}) for b in (1, 17, -1)],
            *[(Switch, {"blocks": b}) for b in ("third", "", "1,", "1.5", "-1", "all,1")],
        ],
    )
    def test_impossible_values_are_refused_by_name(self, kind, values):
        needed = {"family": "pruning", "model": "resnet20"} if kind is Experiment else {}
        with pytest.raises(ValueError, match=next(iter(values))):
            kind(**needed, **values)

    def test_a_batch_that_does_not_divide_is_refused(self):
        with pytest.raises(ValueError, match=r"recipe\.batch 10 does not divide over 4 workers"):
            replace(GOLDEN, recipe=Recipe(batch=10), parallel=Parallel(workers=4))


class TestRow:
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
