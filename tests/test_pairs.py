"""Every two parts of an Experiment work together, with the effect of each, or are refused.

All pairs are tried by `make nightly`; a sample that changes by the day is tried always.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import combinations as parts
import effects
import pytest

from raybench.experiment import compatible, conflicts, technique_types

DAY = datetime.now(UTC).date().toordinal()
"""Decides the sample; it stands in the names of the tests."""
SAMPLED = 10

PAIRS = parts.pairs()
REFUSED = [pair for pair in PAIRS if parts.refusal(parts.together(*pair, teacher=Path("file")))]
DECLARED = [pair for pair in REFUSED if conflicts(parts.together(*pair, teacher=Path("file")))]
ALLOWED = [pair for pair in PAIRS if pair not in REFUSED]
SAMPLE = random.Random(DAY).sample(ALLOWED, min(SAMPLED, len(ALLOWED)))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a trained model."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    parts.train(parts.BASE, path)
    return path


def tried(pair: tuple[str, ...], teacher: Path, folder: Path) -> list[str]:
    experiment = parts.together(*pair, teacher=teacher)
    metrics, stored = parts.train(experiment, folder / "model.safetensors")
    return effects.faults(experiment, metrics, stored, folder / "model.safetensors")


def named(pair: tuple[str, str]) -> str:
    return "+".join(name.replace(" ", "_") for name in pair)


@pytest.mark.slow
@pytest.mark.parametrize("pair", SAMPLE, ids=lambda pair: f"day{DAY}-{named(pair)}")
def test_a_pair_of_today_works_and_has_its_effect(pair, teacher, tmp_path):
    assert not tried(pair, teacher, tmp_path), f"of the sample {DAY}"


@pytest.mark.nightly
@pytest.mark.parametrize("pair", ALLOWED, ids=named)
def test_a_pair_works_and_has_its_effect(pair, teacher, tmp_path):
    assert not tried(pair, teacher, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("part", parts.parts())
def test_a_part_alone_works_and_has_its_effect(part, teacher, tmp_path):
    assert not tried((part,), teacher, tmp_path)


@pytest.mark.parametrize("pair", REFUSED, ids=named)
def test_a_pair_that_is_not_allowed_never_trains(pair, teacher, tmp_path, no_training):
    experiment = parts.together(*pair, teacher=teacher)
    with pytest.raises(ValueError, match=r"\w") as error:
        parts.train(experiment, tmp_path / "model.safetensors")
    assert len(str(error.value).splitlines()) == 1


def test_every_technique_is_tried_beside_every_other():
    names = {name.split()[0] for name in parts.settings()}
    assert names == set(technique_types())
    # What fits no common model is refused by the model; the rest is allowed, or declared apart.
    assert len(ALLOWED) > len(REFUSED)


def test_what_is_refused_by_a_declaration_is_allowed_without_it(teacher):
    declared = [
        pair for pair in REFUSED if "cannot be combined" in parts.refusal(parts.together(*pair))
    ]
    assert declared
    for pair in DECLARED:
        for alone in pair:
            assert compatible(parts.together(alone, teacher=teacher))
