"""The page of a GPU's tables: medians, ends, targets, differences, references, what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from raybench.bench.gpu_parts import page, rows
from raybench.bench.gpu_parts.references import LISTED
from raybench.bench.gpu_parts.rows import FAILED, SECONDS, Row
from raybench.bench.gpu_parts.subjects import subjects


def markdown(folder: Path, values: list[Row], gpu: str = "a GPU") -> str:
    """The page of these rows, through their files."""
    for part in {row.part for row in values}:
        stamped = [rows.stamped(row) | {"gpu": gpu} for row in values if row.part == part]
        rows.write(folder, part, stamped)
    return page.markdown(rows.read(folder))


def test_rounds_become_medians(tmp_path):
    rates = enumerate((10.0, 30.0, 20.0), 1)
    text = markdown(tmp_path, [Row("a", "resnet20", "plain", "rate", v, n) for n, v in rates])
    assert "| resnet20 | plain | rate | 20 | 10 | 30 | 3 |" in text
    assert "a GPU, torch" in text


def test_a_target_is_the_plain_recipes_own_end_less_a_point(tmp_path):
    curves = {"plain": (0.5, 0.895, 0.9), "speed": (0.6, 0.891)}
    values = [
        Row("b", "resnet18", side, figure, value, number)
        for side, accuracies in curves.items()
        for number, accuracy in enumerate(accuracies, 1)
        for figure, value in (("accuracy", accuracy), ("train_s", 10.0 * number))
    ]
    text = markdown(tmp_path, values)
    assert "| resnet18 | plain | 3 | 90.00 | 89.00 | 20.0 |" in text
    assert "| resnet18 | speed | 2 | 89.10 | 89.00 | 20.0 |" in text


def test_differences_are_paired_by_seed(tmp_path):
    ends = {"plain": (0.90, 0.80, 0.85), "ema": (0.91, 0.82, 0.86)}
    values = [
        Row("d", "vit", side, "accuracy", value, epoch, seed)
        for side, accuracies in ends.items()
        for seed, accuracy in enumerate(accuracies)
        for epoch, value in ((1, 0.1), (2, accuracy))
    ]
    text = markdown(tmp_path, values)
    # Differences 1, 2, 1 points: their deviation is 0.577, t(2) is 4.303.
    assert "| vit | ema | accuracy | 86.33 % | +1.333 ± 1.43 points | 3 |" in text


def test_references_stand_beside_our_figures(tmp_path):
    values = [
        Row("c", "switch_vit vit300", side, "s_per_epoch", seconds, 12)
        for side, seconds in (("dense", 2.0), ("experts_64", 2.5))
    ]
    text = markdown(tmp_path, values)
    assert "| switch_vit vit300 | dense | s_per_epoch | 2 | 11.8 |" in text
    assert "| switch_vit vit300 | experts_64 | s_per_epoch | 2.5 | 130.5 |" in text
    assert "| switch_vit vit300 | experts_64 | speed_up | 0.8 | 0.09041 |" in text


def test_all_five_references_are_listed():
    families = {one.experiment.family for one in LISTED}
    assert families == {"switch_vit", "strategies", "monarch", "pruning", "pipeline"}
    assert len({(one.subject, one.side) for one in LISTED}) == len(LISTED)
    by_side = {(one.subject, one.side): one for one in LISTED}
    switch = by_side["switch_vit vit300", "experts_32"]
    assert switch.experiment.recipe.batch == 256
    assert switch.figures["accuracy"] == pytest.approx(0.7904)
    pipeline = by_side["pipeline vgg11", "chunks_8"].experiment
    assert (pipeline.recipe.batch, pipeline.recipe.lr, pipeline.pipeline.chunks) == (512, 0.2, 8)


def test_what_is_missing_is_named(tmp_path):
    names = [one.name for one in subjects("a", small=False)]
    values = [Row("a", name, "", SECONDS, 60.0) for name in names[1:]]
    values.append(Row("a", names[0], "", FAILED, 1.0, note="OutOfMemoryError: 80 GB"))
    text = markdown(tmp_path, values)
    assert f"energy: {names[0]}; run `make gpu PART=a`" in text
    assert f"- Part a, {names[0]} failed: OutOfMemoryError: 80 GB." in text
    assert "Part b, time to a target accuracy: all; run" in text
    values = [Row("a", name, "", SECONDS, 60.0) for name in names]
    assert "Part a," not in markdown(tmp_path, values)


def test_a_cpus_rows_are_not_a_gpus(tmp_path):
    values = [Row("a", "resnet20", "plain", "rate", 1.0, 1)]
    assert markdown(tmp_path, values, gpu="").count(page.NOT_YET) == 5


def test_the_page_in_the_documents_is_printed():
    text = (Path(__file__).parent.parent / "docs" / "gpu.md").read_text()
    assert text.startswith(page.ABOUT.rstrip())  # print it again with `make gpu`
