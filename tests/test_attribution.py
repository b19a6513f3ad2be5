"""Attribution: the effect of each ingredient, from arms that are found in the trials."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybench import report, train
from raybench.experiment import Experiment, Parallel, flatten, tables
from raybench.reports.attribution import TITLE, attribute, table
from raybench.reports.effect import effect
from raybench.results.read import Results, read
from raybench.results.store import Store
from raybench.search.overrides import Overrides
from raybench.search.space import load
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from trainers import pruning

ROOT = Path(__file__).parent.parent
ABOUT = {"family": "pruning", "sweep": "s", "objectives": pruning.objectives}
NAMES = ["augmentation", "pruning", "precision", "quantization", "workers"]

# What each gives: points of accuracy, times smaller, times faster.
TRUE = {
    "augmentation": (1.5, 1.0, 0.95),
    "pruning": (-0.4, 2.5, 0.9),
    "precision": (0.1, 1.0, 1.6),
    "quantization": (-0.2, 4.0, 0.8),
    "workers": (0.0, 1.0, 1.9),
}
SAID = {
    "augmentation": "crop, cutout, flip",
    "pruning": "prune",
    "precision": "precision",
    "quantization": "quantize",
    "workers": "workers",
}
T2 = 4.3026527  # Student's t with two degrees of freedom: 97.5 %


def built(on: set[str], seed: int) -> Experiment:
    recipe = replace(pruning.base.recipe, precision="bf16" if "precision" in on else "fp32")
    augmentation = {"cutout": 8} if "augmentation" in on else {"crop": 0, "flip": False}
    return replace(
        pruning.base,
        seed=seed,
        recipe=replace(recipe, **augmentation),
        parallel=Parallel(workers=2 if "workers" in on else 1),
        prune=Prune(final_sparsity=0.6) if "pruning" in on else None,
        quantize=Quantize(bits=8) if "quantization" in on else None,
    )


def outcome(on: set[str], noise: float = 0.0) -> dict[str, float]:
    """Effects that add, and ratios that multiply; the noise is a seed's."""
    points = sum(TRUE[name][0] for name in on) + noise
    size = 1_000_000 / math.prod(TRUE[name][1] for name in on)
    seconds = 60.0 * (1 + noise) / math.prod(TRUE[name][2] for name in on)
    return {
        "test_accuracy": 0.8 + points / 100,
        "accuracy": 0.8,
        "model_bytes": round(size),
        "s_per_epoch": seconds,
    }


@pytest.fixture
def written(memory_path: Path) -> Callable[..., Results]:
    """Writes trials as a sweep does: what is on, the seed, and further columns."""

    def write(trials: list[tuple[set[str], int, dict[str, Any]]]) -> Results:
        store = Store(memory_path, *tables.schemas(ABOUT))
        for number, (on, seed, more) in enumerate(trials):
            identity = {"sweep": "s", "trial": f"s-{number:04d}", "number": number}
            row = flatten(built(on, seed))
            status = {"status": "COMPLETE", "epoch": 1}
            store.put_trial({**identity, **row, **status, **outcome(on), **more})
        store.close()
        return read(memory_path)

    return write


def arms(names: list[str] = NAMES, *, base: bool = True) -> list[set[str]]:
    """All, all but one, and none."""
    whole = set(names)
    return [whole, *(whole - {name} for name in names), *([set()] if base else [])]


class TestEffects:
    @pytest.mark.parametrize("base", [True, False])
    def test_are_those_that_were_put_in(self, written, base):
        results = written([(on, seed, {}) for seed in range(3) for on in arms(base=base)])
        contributions = {one.ingredient: one for one in attribute(results)}
        for name, (points, smaller, faster) in TRUE.items():
            one = contributions.pop(SAID[name])
            for measured, wanted in zip(
                (one.points, one.smaller, one.faster), (points, smaller, faster), strict=True
            ):
                assert measured.mean == pytest.approx(wanted, abs=1e-4)
                assert measured.low <= measured.mean <= measured.high
                assert measured.seeds == 3
        assert list(contributions) == (["all together"] if base else [])
        if base:
            whole = contributions["all together"]
            assert whole.points.mean == pytest.approx(1.0)
            assert whole.smaller.mean == pytest.approx(10, rel=1e-4)

    def test_are_paired_by_seed(self, written):
        """A seed's luck is in both of its arms, and out of their difference."""
        luck = {0: -3.0, 1: 0.0, 2: 3.0}
        results = written([(on, s, outcome(on, luck[s])) for on in arms() for s in range(3)])
        for one in attribute(results):
            assert one.points.high - one.points.low < 1e-3
            assert one.faster.high - one.faster.low < 1e-3

    def test_the_interval_is_students(self, written):
        extra = {0: 0.5, 1: -0.25, 2: 1.0}
        trials = []
        for on, seed in product(arms(["pruning", "workers", "augmentation"]), range(3)):
            more = outcome(on)
            if "pruning" in on:
                more["test_accuracy"] += extra[seed] / 100
            trials.append((on, seed, more))
        (one,) = [a for a in attribute(written(trials)) if a.ingredient == "prune"]
        values = [TRUE["pruning"][0] + extra[seed] for seed in range(3)]
        width = T2 * statistics.stdev(values) / math.sqrt(3)
        assert one.points.mean == pytest.approx(statistics.mean(values), abs=1e-6)
        assert one.points.low == pytest.approx(statistics.mean(values) - width, abs=1e-5)
        assert one.points.high == pytest.approx(statistics.mean(values) + width, abs=1e-5)

    def test_seeds_that_only_one_arm_has_do_not_count(self, written):
        trials = [(on, seed, {}) for on in arms() for seed in range(3)]
        trials = [t for t in trials if t[0] != set(NAMES) - {"pruning"} or t[1] == 1]
        contributions = {one.ingredient: one for one in attribute(written(trials))}
        assert contributions["prune"].points.seeds == 1
        assert math.isnan(contributions["prune"].points.low)
        assert contributions["quantize"].points.seeds == 3
        assert table([contributions["prune"]])["accuracy 95 %"].tolist() == ["–"]

    def test_the_most_accuracy_stands_first(self, written):
        contributions = attribute(written([(on, 0, {}) for on in arms()]))
        assert [one.ingredient for one in contributions] == [
            *(SAID[name] for name in sorted(TRUE, key=lambda name: -TRUE[name][0])),
            "all together",
        ]

    @given(st.lists(st.floats(-10, 10), min_size=2, max_size=6), st.floats(-5, 5))
    def test_an_interval_moves_with_its_values(self, values, shift):
        one, moved = effect(np.array(values)), effect(np.array(values) + shift)
        assert one.low <= one.mean <= one.high
        for name in ("mean", "low", "high"):
            assert getattr(moved, name) == pytest.approx(getattr(one, name) + shift, abs=1e-6)


class TestDesign:
    def test_of_one_ingredient_is_a_pair(self, written):
        (one,) = attribute(written([(on, 0, {}) for on in ({"pruning"}, set())]))
        assert one.ingredient == "prune"
        assert one.points.mean == pytest.approx(-0.4)

    def test_of_two_is_a_square_and_begins_where_both_are_on(self, written):
        two = [set(), {"pruning"}, {"workers"}, {"pruning", "workers"}]
        contributions = {
            one.ingredient: one for one in attribute(written([(on, 0, {}) for on in two]))
        }
        assert set(contributions) == {"prune", "workers", "all together"}
        assert contributions["workers"].faster.mean == pytest.approx(1.9)

    def test_a_whole_factorial_is_one_as_well(self, written):
        three = ["pruning", "workers", "quantization"]
        every = [
            {n for n, on in zip(three, way, strict=True) if on} for way in product(*[[0, 1]] * 3)
        ]
        contributions = {
            one.ingredient: one for one in attribute(written([(on, 0, {}) for on in every]))
        }
        assert set(contributions) == {"prune", "workers", "quantize", "all together"}
        assert contributions["quantize"].smaller.mean == pytest.approx(4, rel=1e-4)

    def test_a_field_of_a_technique_is_an_ingredient_by_its_name(self, written):
        softer = flatten(replace(pruning.base, prune=Prune(final_sparsity=0.6, power=1.0)))
        trials = [({"pruning"}, 0, {}), ({"pruning"}, 0, {"prune.power": softer["prune.power"]})]
        (one,) = attribute(written(trials))
        assert one.ingredient == "prune.power"

    def test_a_seed_that_was_run_twice_counts_once(self, written):
        trials = [(on, seed, {}) for on in arms() for seed in (0, 0, 1)]
        assert {one.points.seeds for one in attribute(written(trials))} == {2}

    def test_trials_that_are_not_complete_do_not_count(self, written):
        trials = [(on, 0, {}) for on in arms()]
        trials += [(on, 1, {"status": "PRUNED", "test_accuracy": None}) for on in arms()]
        assert {one.points.seeds for one in attribute(written(trials))} == {1}

    @pytest.mark.parametrize(
        "trials",
        [
            [],
            [({"pruning"}, seed, {}) for seed in range(3)],
            # A ladder: its levels are no ingredients.
            [({"pruning"}, 0, {"prune.final_sparsity": s}) for s in (0.5, 0.6, 0.7)]
            + [(set(), 0, {})],
            # A search: nothing is alike.
            [(set(), 0, {"recipe.lr": 0.1 * i, "recipe.cutout": i}) for i in range(5)],
        ],
        ids=["nothing", "one arm", "a ladder", "a search"],
    )
    def test_another_sweep_is_refused(self, written, trials):
        with pytest.raises(ValueError, match="s has no arm from which the others leave out one"):
            attribute(written(trials))

    def test_the_refusal_counts_what_is_missing(self, written):
        trials = [(on, 0, {"status": "FAILED"}) for on in arms()]
        with pytest.raises(ValueError, match=r"0 arms, 7 trials not complete"):
            attribute(written(trials))


class TestReport:
    def test_has_a_table_and_a_plot(self, written, memory_path, capsys):
        written([(on, seed, {}) for on in arms() for seed in range(3)])
        page = memory_path / "page.html"
        options = report.Report(folders=(str(memory_path),), attribution=True, wide=True, html=page)
        assert report.run(options) == 0
        output = capsys.readouterr().out
        assert TITLE in output
        (line,) = [line for line in output.splitlines() if " quantize " in line and "4.00" in line]
        assert "-0.20" in line
        assert "-0.20 … -0.20" in line
        text = page.read_text()
        assert text.count(TITLE) == 2  # of the table, and of the plot
        assert "times faster" in text

    def test_of_another_sweep_is_an_error(self, written, memory_path, capsys):
        written([({"pruning"}, 0, {})])
        assert report.run(report.Report(folders=(str(memory_path),), attribution=True)) == 2
        assert "search_spaces/attribution.py" in capsys.readouterr().err

    def test_is_left_out_where_nobody_asks(self, written, memory_path, capsys):
        written([({"pruning"}, 0, {})])
        assert report.run(report.Report(folders=(str(memory_path),))) == 0
        assert TITLE not in capsys.readouterr().out

    @pytest.mark.slow
    def test_of_real_runs(self, tmp_path, capsys):
        """Two seeds, with pruning and without, one command each."""
        flags = "--image-size 8 --subset 0.05 --recipe.epochs 1 --recipe.batch 32 --recipe.crop 1"
        for seed in ("0", "1"):
            for more in ([], ["--prune.final-sparsity", "0.9", "--prune.begin", "0"]):
                options = [*flags.split(), "--seed", seed, "--results", str(tmp_path), *more]
                assert train.run(["pruning", *options]) == 0
        (one,) = attribute(read(tmp_path / "pruning-runs"))
        assert one.ingredient == "prune"
        assert one.points.seeds == 2
        assert one.smaller.mean > 4
        assert one.faster.low < one.faster.mean < one.faster.high


def test_the_shipped_space_is_such_a_design():
    """Five ingredients and three seeds, all of them enqueued."""
    space = load(ROOT / "search_spaces" / "attribution.py", Overrides())
    planned = space.examples[: len(space.enqueue)]
    assert len(set(planned)) == 21
    assert set(space.examples) == set(planned)
    rows = []
    for number, experiment in enumerate(planned):
        scores = {"test_accuracy": 0.5, "model_bytes": 1.0, "s_per_epoch": 1.0}
        row = {"number": number, "status": "COMPLETE", **flatten(experiment), **scores}
        rows.append(row)
    trials = pd.DataFrame(rows).convert_dtypes()
    contributions = attribute(Results(trials, pd.DataFrame(), ABOUT))
    assert {one.ingredient for one in contributions} == {*SAID.values(), "all together"}
    assert {one.points.seeds for one in contributions} == {3}
    assert space.workers == 2
