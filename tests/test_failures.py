"""The traceback of a failed trial lies in a file that its row names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_sweep import CONDITIONAL, ONE, PLAIN
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench import train
from raybench.reports.epoch_line import epoch_line
from raybench.results.read import read
from raybench.search.sweep import Sweep
from trainers import pruning

QUICK = ["--image-size", "8", "--subset", "0.1", "--recipe.epochs", "1", "--recipe.crop", "1"]


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("no kernel\nfor this")


class TestTrain:
    def test_keeps_the_traceback(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(pruning, "train", broken, raising=False)
        assert train.run(["pruning", *QUICK, "--results", str(tmp_path)]) == 1
        folder = tmp_path / "pruning-runs"
        (row,) = read(folder).trials.to_dict("records")
        assert row["failure"] == ".state/failures/0.txt"
        text = (folder / row["failure"]).read_text()
        assert text.startswith("Traceback (most recent call last)")
        assert "in broken" in text
        assert text.endswith("RuntimeError: no kernel\nfor this\n")

    def test_a_technique_of_another_family_leaves_a_row_and_a_folder_that_goes_on(
        self, tmp_path, capsys
    ):
        small = ["--model", "vit32x2", "--recipe.batch", "32", "--results", str(tmp_path)]
        both = ["--monarch.blocks", "4", "--prune.final-sparsity", "0.5", "--prune.frequency", "1"]
        assert train.run(["monarch", *QUICK, *small, *both]) == 0
        printed = capsys.readouterr().out
        assert "sparsity" in printed
        assert "structured_layers" in printed
        assert train.run(["monarch", *QUICK, *small]) == 0
        trials = read(tmp_path / "monarch-runs").trials
        assert trials["status"].tolist() == ["COMPLETE", "COMPLETE"]
        assert trials["structured_layers"].fillna(0).tolist() == [8, 0]
        assert trials["sparsity"].isna().tolist() == [False, True]

    def test_prints_what_techniques_report(self):
        metrics = {"loss": 1.0, "distillation_loss": 0.5, "factors": "4", "distill_coverage": 1.0}
        line = epoch_line(pruning.base, 2, metrics)
        assert line == f"epoch 2/{pruning.base.recipe.epochs}  loss 1  distillation_loss 0.5"


class TestSweep:
    def test_the_one_writer_keeps_what_the_worker_sends(self, load, tmp_path):
        from raybench.cluster import trial

        sweep = Sweep(tmp_path / "s", load(ONE, CONDITIONAL), trials=2, overrides=PLAIN)
        first, second = sweep.ask(), sweep.ask()
        try:
            broken()
        except RuntimeError as error:
            report = json.loads(trial.failure(error)["report"])
        sweep.finish(first.number, "FAILED", report["failed"], report["traceback"])
        sweep.finish(second.number, "FAILED", "the worker process died")
        sweep.close()
        rows = read(tmp_path / "s").trials.set_index("number")
        assert rows.loc[0, "stop_reason"] == "RuntimeError: no kernel"
        text = (tmp_path / "s" / rows.loc[0, "failure"]).read_text()
        assert "in broken" in text
        assert "for this" in text
        assert rows["failure"].isna().tolist() == [False, True]

    def test_a_worker_of_several_sends_it_too(self):
        from raybench.cluster import trial

        try:
            broken()
        except RuntimeError as error:
            report = json.loads(trial.failure(error)["report"])
        raised = trial.raised(report)
        assert str(raised) == "RuntimeError: no kernel"
        assert "in broken" in raised.__notes__[0]

    def test_an_undeclared_metric_is_refused_and_the_folder_stays_whole(self, load, tmp_path):
        sweep = Sweep(tmp_path / "s", load(ONE, CONDITIONAL), trials=1, overrides=PLAIN)
        task = sweep.ask()
        with pytest.raises(ValueError, match="no column 'acuracy' is declared"):
            sweep.report(task.number, 1, {"acuracy": 0.5})
        with pytest.raises(ValueError, match="'threads' is declared as int"):
            sweep.note(task.number, threads="1")
        sweep.report(task.number, 1, {"accuracy": 0.5})
        sweep.finish(task.number, "COMPLETE")
        sweep.close()
        Sweep(tmp_path / "s", load(ONE, CONDITIONAL), trials=1, overrides=PLAIN).close()
        assert read(tmp_path / "s").trials["accuracy"].tolist() == [0.5]


def test_paths_are_relative_to_the_folder(tmp_path):
    from raybench.results import failures

    path = failures.keep(tmp_path, 7, "Traceback\n\n")
    assert not Path(path).is_absolute()
    assert (tmp_path / path).read_text() == "Traceback\n"
