"""Every technique with every strategy of two workers works, with its effect, or is refused.

All are tried by `make nightly`; a sample that changes by the day is tried always.
"""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import combinations as parts
import effects
import gloo
import pytest

from raybench.experiment import Experiment, Parallel, from_json
from raybench.experiment.plain import hints_of

pytestmark = [pytest.mark.workers, pytest.mark.timeout(150)]

STRATEGIES = get_args(hints_of(Parallel)["strategy"])
DAY = datetime.now(UTC).date().toordinal()


def spread(name: str, strategy: str, teacher: Path) -> Experiment:
    experiment = parts.together(name, teacher=teacher)
    workers = 2 if strategy != "expert" or experiment.switch is not None else 1
    strategy = strategy if workers == 2 else "ddp"
    return replace(experiment, parallel=Parallel(workers=workers, strategy=strategy))


PAIRS = [
    (name, strategy)
    for name in parts.settings()
    for strategy in STRATEGIES
    if (strategy != "expert" or name.startswith("switch"))
    and not parts.refusal(spread(name, strategy, Path("file")))
]


def run(rank: int, experiment: str, path: str) -> list[Any]:
    own = Path(path) / f"{rank}.safetensors"
    metrics, stored = parts.train(from_json(experiment), own)
    return [metrics, stored]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a trained model."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    parts.train(parts.BASE, path)
    return path


def check(name: str, strategy: str, teacher: Path, folder: Path) -> None:
    experiment = spread(name, strategy, teacher)
    (metrics, stored), (_, others) = gloo.together(
        run, folder, experiment.to_json(), str(folder), workers=2
    )
    assert not effects.faults(experiment, metrics, stored, folder / "0.safetensors")
    assert stored.keys() == others.keys()
    differing = [n for n, value in stored.items() if not effects.equal_bits(value, others[n])]
    assert not differing, "the workers' models differ"


@pytest.mark.parametrize(
    ("name", "strategy"), random.Random(DAY).sample(PAIRS, 3), ids=lambda v: f"{v}-day{DAY}"
)
def test_a_technique_of_today_in_workers(name, strategy, teacher, tmp_path):
    check(name, strategy, teacher, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "strategy"), PAIRS)
def test_a_technique_in_workers(name, strategy, teacher, tmp_path):
    check(name, strategy, teacher, tmp_path)
