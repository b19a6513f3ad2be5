"""A problem for the simulator: a smooth peak, rising curves, and a conditional parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
from optuna.trial import Trial

from raybench.search.decisions import Decisions
from raybench.search.simulation.curves import Curve, Params, Problem
from raybench.search.simulation.memory_sweep import MemorySweep

EPOCHS = 9
ONE = {"accuracy": "max"}
TWO = {"accuracy": "max", "model_bytes": "min"}


def suggest(trial: Trial) -> Params:
    params = {
        "lr": trial.suggest_float("lr", 1e-3, 1.0, log=True),
        "width": trial.suggest_int("width", 1, 64, log=True),
        "kind": trial.suggest_categorical("kind", ["plain", "sparse"]),
    }
    if params["kind"] == "sparse":
        params["sparsity"] = trial.suggest_float("sparsity", 0.1, 0.9)
    return params


def curve(params: Params) -> Curve:
    off = (np.log10(params["lr"]) + 1) ** 2 + 0.5 / params["width"]
    kept = 1 - params.get("sparsity", 0.0)
    best = np.exp(-off) * (0.8 + 0.2 * kept)
    epochs = np.arange(1, EPOCHS + 1)
    metrics = {
        "accuracy": best * epochs / (epochs + 1),
        "model_bytes": np.full(EPOCHS, 1000.0 * params["width"] * kept),
    }
    return Curve(metrics, np.full(EPOCHS, 1.0 + params["width"] / 64))


def problem(objectives: dict[str, str] = TWO) -> Problem:
    return Problem("peak", suggest, curve, EPOCHS, objectives, frozenset({"model_bytes"}))


def decisions(objectives: dict[str, str] = TWO, **options: Any) -> Decisions:
    usual = {"sampler": "model", "seed": 0, "early_stopping": True, "evidence": 5}
    return Decisions(objectives, EPOCHS, **{**usual, **options})


def memory_sweep(objectives: dict[str, str] = TWO, **options: Any) -> MemorySweep:
    return MemorySweep(decisions(objectives, **options), suggest)
