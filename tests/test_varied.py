"""What varies in a sweep shows: on the front, and in rows that are not pooled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from table_rows import tmp_path as tmp_path

from raybench.experiment import Experiment, Parallel, Pipeline, flatten, tables
from raybench.reports import summary
from raybench.reports.tables import pipeline as chunk_table
from raybench.reports.tables import strategies as strategies_table
from raybench.reports.varied import varied
from raybench.results.read import Results, read
from raybench.results.store import Store
from raybench.techniques.distill import Distill
from raybench.techniques.monarch import Monarch
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from raybench.techniques.switch import Switch
from raybench.training import trainer
from trainers import monarch, pipeline, pruning, strategies, switch_vit

METRICS: dict[str, Any] = {
    "accuracy": 0.5,
    "test_accuracy": 0.5,
    "model_bytes": 1000,
    "s_per_epoch": 1.0,
    "s_per_batch": 0.1,
    "inference_s": 0.1,
    "parameters": 10,
    "flops": 10,
    "samples_per_s": 1.0,
    "peak_memory_bytes": 1,
    "sent_bytes_per_step": 1,
    "precision_used": "float32",
    "compute_s": 1.0,
    "waiting_s": 1.0,
    "communication_s": 1.0,
    **dict.fromkeys(trainer.COUNTED, 1),
    **{f"theory_{name}": 1 for name in trainer.COUNTED},
}


@pytest.fixture
def written(tmp_path) -> Callable[..., Results]:
    """A finished sweep of these experiments, with their accuracies."""

    def write(*experiments: Experiment, accuracies: tuple[float, ...] = ()) -> Results:
        family = experiments[0].family
        about = {"family": family, "sweep": "s", "objectives": {"accuracy": "max"}}
        store = Store(tmp_path, *tables.schemas(about))
        for number, experiment in enumerate(experiments):
            identity = {"sweep": "s", "trial": f"s-{number}", "number": number}
            scores = {"test_accuracy": accuracies[number]} if accuracies else {}
            last = {**METRICS, **scores, "epoch": 1}
            store.put_epoch({**identity, **last})
            outcome = {"status": "COMPLETE", "threads": 1}
            store.put_trial({**identity, **flatten(experiment), **last, **outcome})
        store.close()
        return read(tmp_path)

    return write


def lr(experiment: Experiment, rate: float) -> Experiment:
    return replace(experiment, recipe=replace(experiment.recipe, lr=rate))


class TestVaried:
    def test_a_technique_that_is_on_or_off_shows_once(self, written):
        quantized = replace(pruning.base, quantize=Quantize(bits=8))
        results = written(pruning.base, quantized)
        assert varied(results.trials) == ["quantize.bits"]
        assert "quantize.bits" in summary.front_table(results)
        assert varied(results.trials, ["quantize.begin"]) == []  # shown already

    def test_its_fields_that_differ_show_instead(self, written):
        half, most = Prune(begin=0.1), Prune(begin=0.2)
        results = written(*(replace(pruning.base, prune=one) for one in (None, half, most)))
        assert varied(results.trials) == ["prune.begin"]

    def test_the_seed_does_not_count(self, written):
        results = written(pruning.base, lr(replace(pruning.base, seed=1), 0.2))
        assert varied(results.trials) == ["recipe.lr"]


DENSE_VIT = replace(monarch.base, model="vit192x4")
STAGED = replace(pipeline.base, pipeline=Pipeline(stages=2, chunks=2))


class TestFamilyTables:
    """Trials that differ in what the table does not show have rows of their own."""

    @pytest.mark.parametrize(
        ("experiment", "column", "value"),
        [
            (pruning.base, "prune.power", None),
            (replace(pruning.base, prune=Prune()), "prune.scope", "global"),
            (DENSE_VIT, "quantize.bits", None),
            (replace(DENSE_VIT, monarch=Monarch()), "monarch.scale_lr", True),
            (switch_vit.base, "monarch.blocks", None),
            (replace(switch_vit.base, switch=Switch()), "switch.top_k", 1),
            (STAGED, "recipe.lr", 0.2),
            (strategies.base, "recipe.lr", 1e-4),
        ],
        ids=lambda value: getattr(value, "family", None),
    )
    def test_are_not_pooled(self, written, experiment, column, value):
        group, _, field = column.partition(".")
        other_values = {"scope": "layer", "scale_lr": False, "top_k": 2, "lr": 0.3}
        if getattr(experiment, group) is None:
            makers = {"quantize": Quantize(), "monarch": Monarch(), "prune": Prune(power=2.0)}
            other = replace(experiment, **{group: makers[group]})
        else:
            changed = replace(getattr(experiment, group), **{field: other_values[field]})
            other = replace(experiment, **{group: changed})
        table = summary.family_table(written(experiment, other, experiment), 0.5)
        assert sorted(table["trials"]) == [1, 2]
        if column != "prune.power":  # there the sparsity tells the rows apart
            told = table.loc[table["trials"] == 2, column].item()
            assert pd.isna(told) if value is None else told == value

    def test_a_difference_is_to_the_dense_twin_of_the_same_recipe(self, written):
        sparse = replace(pruning.base, prune=Prune())
        runs = [lr(one, rate) for one in (pruning.base, sparse) for rate in (0.1, 0.2)]
        results = written(*runs, accuracies=(0.9, 0.5, 0.8, 0.45))
        table = summary.family_table(results, 0.5)
        pruned = table[table["kind"] == "pruned"].set_index("recipe.lr")
        assert pruned["vs dense, points"].to_dict() == {0.1: -10.0, 0.2: -5.0}

    def test_a_random_search_is_compared_with_the_dense_trial_that_it_has(self, written):
        sparse = lr(replace(pruning.base, prune=Prune()), 0.2)
        table = summary.family_table(written(pruning.base, sparse, accuracies=(0.9, 0.8)), 0.5)
        assert table.loc[table["kind"] == "pruned", "vs dense, points"].tolist() == [-10.0]

    def test_a_teacher_is_told_where_no_column_has_it(self, written):
        taught = replace(switch_vit.base, distill=Distill(teacher="teacher.safetensors"))
        table = summary.family_table(written(switch_vit.base, taught), 0.5)
        assert table["distill.teacher"].fillna("").tolist() == ["teacher.safetensors", ""]


def test_trained_models_of_the_seeds_are_one_start(written):
    runs = [
        replace(pruning.base, seed=seed, start_from=f"{model}-{seed}.safetensors")
        for model in ("resnet20", "other20")
        for seed in (0, 1, 20)
    ]
    table = summary.family_table(written(*runs), 0.5)
    assert table.set_index("start_from")["trials"].to_dict() == {
        "resnet20-*.safetensors": 3,
        "other20-*.safetensors": 3,
    }


def test_defaults_in_the_pipelines_table_are_those_of_the_class():
    assert {name: getattr(Pipeline(), name) for name in chunk_table.PLAIN} == chunk_table.PLAIN


def test_states_in_the_strategies_table_are_those_that_are_counted():
    assert (*strategies_table.HELD, "activations_bytes") == trainer.COUNTED
    assert Parallel().strategy == "ddp"
