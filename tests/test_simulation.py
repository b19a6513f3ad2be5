"""The simulator: the order of a real sweep's events, its budget, and the scenarios."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from simulated import EPOCHS as PEAK_EPOCHS
from simulated import curve, memory_sweep, problem
from small_sweep import CONDITIONAL, EPOCHS, ONE, PLAIN, TWO, drive, metrics
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.search.simulation.curves import Curve, late_start
from raybench.search.simulation.scenario import VARIABLE, Scenario, folder_of
from raybench.search.simulation.slots import simulate
from raybench.search.sweep import Sweep


def events(sweep: Sweep) -> list[tuple[Any, ...]]:
    """A sweep notes its events in this list from now on."""
    noted: list[tuple[Any, ...]] = []
    ask, report, finish = sweep.ask, sweep.report, sweep.finish

    def asked():
        task = ask()
        noted.append(("ask", task and task.number, task and task.experiment.key()))
        return task

    def reported(number, epoch, values):
        stop = report(number, epoch, values)
        noted.append(("report", number, epoch, stop))
        return stop

    def finished(number, status, reason=None):
        noted.append(("finish", number, status))
        finish(number, status, reason)

    sweep.ask, sweep.report, sweep.finish = asked, reported, finished
    return noted


@pytest.mark.parametrize("concurrent", [1, 3])
@pytest.mark.parametrize("objectives", [ONE, TWO], ids=["one", "two"])
def test_events_come_in_the_order_of_a_real_run(load, tmp_path, objectives, concurrent):
    space = load(objectives, CONDITIONAL)
    real = Sweep(tmp_path / "real", space, trials=14, overrides=PLAIN)
    expected = events(real)
    drive(real, concurrent=concurrent)
    real.close()

    def curve_of(task):
        reports = [metrics(task, epoch) for epoch in range(1, EPOCHS + 1)]
        columns = {name: np.array([one[name] for one in reports]) for name in reports[0]}
        return Curve(columns, np.ones(EPOCHS))

    simulated = Sweep(tmp_path / "simulated", space, trials=14, overrides=PLAIN)
    seen = events(simulated)
    report = simulated.report
    # A curve holds floats; the column model_bytes holds whole numbers.
    simulated.report = lambda number, epoch, values: report(
        number, epoch, {**values, "model_bytes": int(values["model_bytes"])}
    )
    simulate(simulated, curve_of, slots=concurrent, budget=10**6)
    simulated.close()
    assert [one for one in seen if one[1] is not None] == [
        one for one in expected if one[1] is not None
    ]


def test_the_budget_is_counted_in_epochs():
    complete = simulate(
        memory_sweep(early_stopping=False, sampler="random"),
        lambda task: curve(task.params),
        slots=1,
        budget=5 * PEAK_EPOCHS + 3,
    )
    assert [one.spent for one in complete] == [PEAK_EPOCHS * n for n in range(1, 6)]


def test_a_quick_trial_ends_before_a_slow_one_that_began_earlier():
    seconds = iter([3.0, 1.0, 1.0])
    complete = simulate(
        memory_sweep(early_stopping=False, sampler="random"),
        lambda task: Curve(curve(task.params).metrics, np.full(PEAK_EPOCHS, next(seconds, 9.0))),
        slots=2,
        budget=3 * PEAK_EPOCHS,
    )
    assert [one.number for one in complete][:2] == [1, 0] or complete[0].number == 1


def test_a_late_start_changes_the_first_third_of_what_is_learned():
    plain, late = problem(), late_start(problem())
    params = {"lr": 0.1, "width": 8, "kind": "plain"}
    one, other = plain.curve(params), late.curve(params)
    third = PEAK_EPOCHS // 3
    assert (one.metrics["accuracy"][:third] != other.metrics["accuracy"][:third]).all()
    assert (one.metrics["accuracy"][third:] == other.metrics["accuracy"][third:]).all()
    assert (one.metrics["model_bytes"] == other.metrics["model_bytes"]).all()
    assert (late.curve(params).metrics["accuracy"] == other.metrics["accuracy"]).all()


class TestScenario:
    def test_a_folder_without_its_files_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"lacks about\.json"):
            Scenario(tmp_path)

    def test_an_unknown_scenario_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setenv(VARIABLE, str(tmp_path))
        with pytest.raises(ValueError, match="holds no scenario 'lcbench'"):
            folder_of("lcbench")
        monkeypatch.delenv(VARIABLE)
        with pytest.raises(ValueError, match="is not set"):
            folder_of("lcbench")

    def test_conditions_decide_what_is_suggested(self, tmp_path):
        parameters = [
            {"name": "gamma", "type": "uniform_float", "lower": 0.1, "upper": 1.0, "log": False},
            {"name": "kernel", "type": "categorical", "choices": ["linear", "radial"]},
            {"name": "task", "type": "categorical", "choices": ["a", "b"]},
            {"name": "epoch", "type": "uniform_int", "lower": 1, "upper": 4, "log": False},
        ]
        condition = {"child": "gamma", "parent": "kernel", "type": "EQ", "value": "radial"}
        space = {"hyperparameters": parameters, "conditions": [condition]}
        about = {
            "instance": "task",
            "fidelity": {"name": "epoch", "values": [1, 4]},
            "objectives": {"accuracy": "max"},
        }
        for name, content in (("about", about), ("config_space", space), ("encoding", {})):
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        (tmp_path / "model.onnx").write_bytes(b"")
        scenario = Scenario(tmp_path)
        assert scenario.tasks == ["a", "b"]
        assert scenario.problem("a").epochs == 4
        with pytest.raises(ValueError, match="has no task c"):
            scenario.problem("c")
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(20):
            params = scenario.suggest(study.ask())
            assert ("gamma" in params) == (params["kernel"] == "radial")

    @pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"{VARIABLE} is not set")
    def test_every_scenario_has_curves(self):
        for folder in Path(os.environ[VARIABLE]).glob("*/"):
            scenario = Scenario(folder)
            searched = scenario.problem(scenario.tasks[0])
            study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
            its_curve = searched.curve(searched.suggest(study.ask()))
            assert its_curve.metrics.keys() == searched.objectives.keys()
            for values in (*its_curve.metrics.values(), its_curve.seconds):
                assert len(values) == searched.epochs
                assert np.isfinite(values).all()
            assert (its_curve.seconds > 0).all()
