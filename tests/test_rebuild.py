"""The commands on damaged files: each error names its file, and the way on works."""

from __future__ import annotations

import pandas as pd
import pytest
from small_sweep import CONDITIONAL, ONE, PLAIN, assert_study_agrees, drive, rows
from small_sweep import _quick_disk as _quick_disk
from small_sweep import load as load
from small_sweep import tmp_path as tmp_path

from raybench.report import Report, run
from raybench.search.sweep import Sweep


@pytest.fixture(autouse=True)
def _short_report(monkeypatch):
    """The trials here report too little for their family's table."""
    monkeypatch.setattr("raybench.reports.summary.family_table", lambda *_: None)


@pytest.fixture
def folder(load, tmp_path):
    sweep = Sweep(tmp_path / "s", load(ONE, CONDITIONAL), trials=5, overrides=PLAIN)
    drive(sweep)
    sweep.close()
    return tmp_path / "s"


@pytest.mark.parametrize("name", ["trials/trials.parquet", "epochs/epochs-00000.parquet"])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.5])
def test_a_report_names_the_file_and_its_advice_works(folder, capsys, name, place):
    before, file = pd.read_parquet(folder / name), folder / name
    content = bytearray(file.read_bytes())
    at = int(place * len(content))
    content[at : at + 64] = bytes(64)
    file.write_bytes(content)
    assert run(Report(folders=(str(folder),))) == 2
    error_output = capsys.readouterr().err
    assert f"{file} is damaged" in error_output
    assert f"raybench.report {folder} --rebuild" in error_output
    assert run(Report(folders=(str(folder),), rebuild=True)) == 0
    assert "wrote 5 trials" in capsys.readouterr().err
    pd.testing.assert_frame_equal(pd.read_parquet(file), before)


def test_a_rebuild_restores_the_journal_and_the_log(folder, capsys):
    before = rows(folder)
    (folder / ".state/study.journal").write_text("{")
    (folder / ".state/log").unlink()
    assert run(Report(folders=(str(folder),), rebuild=True)) == 0
    error_output = capsys.readouterr().err
    assert "log was short; its 5 trials were restored" in error_output
    assert rows(folder).keys() == before.keys()
    assert_study_agrees(folder, {"accuracy": "max"})


def test_a_sweep_that_runs_is_not_rebuilt(load, folder, capsys):
    sweep = Sweep(folder, load(ONE, CONDITIONAL), trials=6, overrides=PLAIN)
    assert run(Report(folders=(str(folder),), rebuild=True)) == 2
    assert "another process is running the sweep" in capsys.readouterr().err
    sweep.close()


def test_nothing_to_rebuild_from(tmp_path, capsys):
    assert run(Report(folders=(str(tmp_path),), rebuild=True)) == 2
    assert "holds no sweep: there is neither a log nor a table" in capsys.readouterr().err
