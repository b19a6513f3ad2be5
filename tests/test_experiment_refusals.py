"""Experiments that cannot be are refused, with the field's name."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from experiments import GOLDEN

from raybench.experiment import (
    Experiment,
    Parallel,
    Recipe,
    checked,
    from_json,
)
from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from raybench.techniques.prune import Prune
from raybench.techniques.switch import Switch


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
