"""The GPU's tables: every part runs on a CPU in a few steps; the page lists what is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raybench.bench import gpu
from raybench.bench.gpu_parts import page, rows, steps, subjects


@pytest.mark.slow
@pytest.mark.parametrize("part", ["a", "b"])
def test_a_part_runs_and_its_values_come_back(tmp_path, monkeypatch, part):
    monkeypatch.setattr(steps, "STEPS", 2)
    monkeypatch.setattr(steps, "ROUNDS", 1)
    figures = gpu.measure(minutes=5, part=part, folder=tmp_path)
    assert figures["subjects"] == figures["of_subjects"] == len(subjects.subjects(part, small=True))
    back = rows.read(tmp_path)
    assert len(back) == figures["values"] > 0
    assert {row["part"] for row in back} == {part}


@pytest.mark.nightly
@pytest.mark.parametrize("part", ["c", "d", "e"])
def test_the_longer_parts_run_too(tmp_path, part):
    figures = gpu.measure(minutes=5, part=part, folder=tmp_path)
    assert figures["subjects"] == figures["of_subjects"]


def test_no_subject_begins_that_would_not_end_in_time(tmp_path, monkeypatch):
    begun: list[str] = []

    def subject(name: str, seconds: float) -> subjects.Subject:
        return subjects.Subject(name, lambda: iter(begun.append(name) or ()), seconds)

    monkeypatch.setitem(
        subjects.PARTS, "a", lambda small: [subject("short", 1), subject("long", 600)]
    )
    monkeypatch.setattr(gpu.gpu, "available", lambda: True)
    monkeypatch.setattr(gpu.gpu, "name", lambda: "")
    assert gpu.measure(minutes=1, part="a", folder=tmp_path)["subjects"] == 1
    assert begun == ["short"]


@pytest.mark.parametrize("wrong", [{"part": "z"}, {"minutes": 0.0}])
def test_wrong_options_are_refused(wrong, tmp_path):
    with pytest.raises(ValueError, match=f"--{next(iter(wrong))}"):
        gpu.measure(folder=tmp_path, **wrong)


def test_the_page_tells_medians_ends_and_what_is_missing(tmp_path):
    values = [
        rows.Row("a", "resnet20", "plain", "images_per_s", v, n)
        for n, v in enumerate((10.0, 30.0, 20.0), 1)
    ]
    rows.write(tmp_path, "a", values)
    rows.write(
        tmp_path, "b", [rows.Row("b", "resnet18", "speed", "accuracy", v / 10, v) for v in (5, 9)]
    )
    on_gpu = [row | {"gpu": "a GPU"} for row in rows.read(tmp_path)]
    text = page.markdown(on_gpu)
    assert "| resnet20 | plain | images_per_s | 20 | 3 |" in text
    assert "| resnet18 | speed | accuracy | 0.9 | 1 |" in text
    assert "Part c" in text
    assert "Part a" not in text
    assert page.markdown(rows.read(tmp_path)).count("Not measured yet.") == 5  # not on a GPU


def test_a_row_is_frozen():
    with pytest.raises(AttributeError):
        replace(rows.Row("a", "b", "c", "d", 1.0)).value = 2.0  # type: ignore[misc]
