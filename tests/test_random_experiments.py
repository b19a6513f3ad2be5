"""Random experiments over all techniques and ten models: each works, or is refused with a reason.

Two hundred are tried by `make nightly`, of a fixed seed; a dozen of the day's seed always.
"""

from __future__ import annotations

import math
import random
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import combinations as parts
import effects
import pytest

from raybench.experiment import (
    Experiment,
    Parallel,
    Pipeline,
    Recipe,
    compatible,
    flatten,
    tables,
    technique_types,
)
from raybench.experiment.plain import hints_of
from raybench.results.read import read
from raybench.results.schema import started
from raybench.results.store import Store
from raybench.training.runner import Diverged

MODELS = (
    "resnet20",
    "resnet20_b",
    "resnet20x2_b",
    "vit32x2",
    "vit64x2",
    "mixer32x2",
    "mobilenet_v2",
    "vgg11_bn",
    "mobilenetv3_small_050",
    "vit_tiny_patch16_224",
)
DAY = datetime.now(UTC).date().toordinal()

VALUES: dict[str, tuple[Any, ...]] = {
    "blocks": (0, 2, 4),  # of matrices; those of switch are names
    "experts": (0, 2, 4),
    "top_k": (1, 2),
    "capacity_factor": (0.5, 1.0, math.inf),
    "bits": (0, 2, 4, 8),
    "activation_bits": (4, 8, 32),
    "ends_bits": (4, 8),
    "budget_bytes": (0, 0, 20_000),
    "frequency": (1, 2, 20),
    "round_to": (1, 4, 16),
    "leave_out": ("", "blocks.0.*"),
    "final_sparsity": (0.3, 0.6, 0.95),
    "initial_sparsity": (0.0, 0.2),
    "temperature": (1.0, 4.0),
    "weight": (0.0, 1.0),
    "power": (1.0, 3.0),
    "ratio": (0.0, 0.25, 0.5),
}
"""Values of fields that are neither switches, nor choices, nor shares."""


def random_experiment(draw: random.Random, teacher: Path) -> Experiment | str:
    """An experiment of up to four techniques, or why its values cannot be."""
    names = draw.sample(list(technique_types()), draw.choice((0, 1, 1, 2, 2, 3, 4)))
    try:
        techniques = {name: _technique(name, draw, teacher) for name in names}
        recipe = Recipe(
            epochs=draw.choice((1, 2, 3)),
            batch=32,
            crop=1,
            lr=0.01,
            optimizer=draw.choice(("sgd", "adamw")),
            mixup=draw.choice((0.0, 0.0, 0.3)),
            cutout=draw.choice((0, 0, 3)),
            label_smoothing=draw.choice((0.0, 0.1)),
            renew_norms=draw.choice((0, 2)),
            precision=draw.choice(("fp32", "fp32", "bf16")),
        )
        pipeline = draw.random() < 0.15
        return Experiment(
            family="pipeline" if pipeline else "pruning",
            model=draw.choice(MODELS),
            image_size=8,
            subset=0.1,
            seed=draw.randrange(100),
            recipe=recipe,
            pipeline=Pipeline(chunks=2 if pipeline else 1),
            parallel=Parallel(checkpointing=draw.random() < 0.1),
            **techniques,
        )
    except ValueError as error:
        return str(error)


def _technique(name: str, draw: random.Random, teacher: Path) -> Any:
    kind = technique_types()[name]
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        hint = hints_of(kind)[field.name]
        if field.name == "teacher":
            values[field.name] = str(teacher)
        elif draw.random() < 0.5:
            continue  # its default
        elif get_origin(hint) is Literal:
            values[field.name] = draw.choice(get_args(hint))
        elif hint is bool:
            values[field.name] = draw.random() < 0.5
        elif name == "switch" and field.name == "blocks":
            values[field.name] = draw.choice(("all", "second", "0"))
        elif field.name in VALUES:
            values[field.name] = draw.choice(VALUES[field.name])
        elif hint is float and isinstance(field.default, float) and 0 <= field.default <= 1:
            values[field.name] = draw.choice((0.0, 0.2, 0.5, 0.9, 1.0))
    return kind(**values)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a trained model."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    parts.train(parts.BASE, path)
    return path


def one_line(reason: str) -> None:
    assert len(reason.splitlines()) == 1
    assert len(reason) > 15


def check(seed: str, teacher: Path, folder: Path) -> None:
    experiment = random_experiment(random.Random(seed), teacher)
    if isinstance(experiment, str):
        one_line(experiment)
        return
    path = folder / "model.safetensors"
    try:
        metrics, stored = parts.train(compatible(experiment), path)
    except ValueError as error:
        one_line(str(error))
        assert not path.exists(), "it trained before it was refused"
        return
    except Diverged:  # an outcome of a trial, with its reason
        return
    assert not _faults(experiment, metrics, stored, path), experiment
    _accepted(experiment, metrics, folder)


def _faults(experiment: Experiment, metrics: Any, stored: Any, path: Path) -> list[str]:
    """What is wrong with the row and the file; effects are as the settings say."""
    actual = effects.file_faults(experiment, metrics, stored, path)
    for name, technique in experiment.techniques():
        reached = metrics.get(f"{name}_coverage")
        if reached is None or not 0 < reached <= 1:
            actual.append(f"{name}_coverage is {reached}")
        actual += [f"{c} is missing" for c in technique.columns if metrics.get(c) is None]
    if experiment.prune is not None and experiment.prune.active:
        least = min(experiment.prune.final_sparsity, experiment.prune.initial_sparsity)
        if not metrics["sparsity"] >= 0.97 * least:
            actual.append(f"sparsity is {metrics['sparsity']}")
    if (
        experiment.quantize is not None
        and experiment.quantize.active
        and (metrics["weight_bits"] > 8)
    ):
        actual.append(f"weight_bits is {metrics['weight_bits']}")
    return actual


def _accepted(experiment: Experiment, metrics: dict[str, Any], folder: Path) -> None:
    """The tables take the row."""
    store = Store(folder, *tables.schemas({"family": experiment.family, "sweep": "random"}))
    row = started("random", 0, experiment.key(), flatten(experiment), {})
    store.put_trial({**row, **metrics, "status": "COMPLETE"})
    store.close()
    (trial,) = read(folder).trials.to_dict("records")
    assert trial["key"] == experiment.key()
    assert trial["test_accuracy"] == metrics["test_accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(12))
def test_an_experiment_of_today_works_or_is_refused(number, teacher, tmp_path):
    check(f"{DAY}.{number}", teacher, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("number", range(200))
def test_a_random_experiment_works_or_is_refused(number, teacher, tmp_path):
    check(str(number), teacher, tmp_path)


def test_most_are_no_refusals(teacher):
    """Else two hundred of them would tell nothing."""
    drawn = [random_experiment(random.Random(str(n)), teacher) for n in range(200)]
    experiments = [e for e in drawn if isinstance(e, Experiment)]
    fitting = [e for e in experiments if not parts.conflicts(e)]
    assert len(fitting) > 100
    assert {name for e in fitting for name, _ in e.techniques()} == set(technique_types())
    assert replace(experiments[0]) == experiments[0]
