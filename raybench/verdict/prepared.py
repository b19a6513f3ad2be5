"""A study before its first trial: its arms, its design, and the folder that it may resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from raybench.experiment import Experiment
from raybench.results import log
from raybench.search.space import Space
from raybench.verdict.arms import Arms, Run
from raybench.verdict.costs import Cost
from raybench.verdict.policy import Design

QUESTION = "Which technique pays?"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a study's folder stores at its start, so that the same command resumes it."""

    design: Design
    costs: dict[str, Cost]
    """As the short runs measured them."""
    remarks: tuple[str, ...]
    short_s: float = 0.0


def design_of(arms: Arms, base: Experiment, **chosen: Any) -> Design:
    """The design for these arms; `chosen` are the fields that a user sets."""
    pairs = combinations(arms.techniques, 2)
    return Design(
        settings={name: len(settings) for name, settings in arms.settings.items()},
        together=frozenset(frozenset(pair) for pair in pairs if arms.together(*pair)),
        epochs=base.recipe.epochs,
        **chosen,
    )


def asked(arms: Arms, design: Design) -> dict[str, Any]:
    """What must be equal for two commands to be the same study: everything except the budget."""
    return {
        "baseline": json.loads(arms.base.to_json()),
        "techniques": {n: [_text(s) for s in settings] for n, settings in arms.settings.items()},
        **{n: v for n, v in asdict(design).items() if n not in ("settings", "together")},
    }


def space_of(arms: Arms, wanted: Mapping[str, Any]) -> Space:
    """The study as a search space; `wanted` is the stored form of `asked`."""
    text = json.dumps(wanted, sort_keys=True)
    examples = [arms.base]
    for name, settings in arms.settings.items():
        run = Run(((name, len(settings)),), 0, arms.base.recipe.epochs, 0)
        examples.append(arms.experiment(run))
    return Space(
        path=Path("which_pays"),
        question=QUESTION,
        family=arms.base.family,
        objectives={"accuracy": "max"},
        enqueue=(),
        fingerprint=hashlib.sha256(text.encode()).hexdigest()[:16],
        sample=arms.space,
        examples=tuple(examples),
    )


def kept(folder: Path, wanted: Mapping[str, Any], design: Design) -> Kept | None:
    """The stored start of this study; None if it is new.

    Raises:
        ValueError: it holds another study.
    """
    path = _path(folder)
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    if content["asked"] != json.loads(json.dumps(wanted)):
        before = content["asked"]
        changed = [n for n, v in json.loads(json.dumps(wanted)).items() if before.get(n) != v]
        raise ValueError(
            f"{folder} holds another study (other {', '.join(changed)}). Use another --name, or "
            "move the folder away"
        )
    shrunk = content["design"]
    names = set(shrunk["settings"])
    return Kept(
        design=replace(
            design,
            settings=shrunk["settings"],
            tuning=shrunk["tuning"],
            together=frozenset(pair for pair in design.together if pair <= names),
        ),
        costs={name: Cost(**cost) for name, cost in content["costs"].items()},
        remarks=tuple(content["remarks"]),
        short_s=content["short_s"],
    )


def keep(folder: Path, wanted: Mapping[str, Any], begun: Kept) -> None:
    """Writes what `kept` reads."""
    path = _path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "asked": wanted,
        "design": {"settings": begun.design.settings, "tuning": begun.design.tuning},
        "costs": {name: asdict(cost) for name, cost in begun.costs.items()},
        "remarks": begun.remarks,
        "short_s": begun.short_s,
    }
    log.replace(path, json.dumps(content).encode(), scratch=path.parent)


def _path(folder: Path) -> Path:
    return folder / ".state" / "study.json"


def _text(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in setting.items())
