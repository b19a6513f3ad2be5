"""How few bits can ResNet-20 have, trained for them or rounded afterwards?

    python -m raybench.tune --space search_spaces/quantization.py                   # digits
    python -m raybench.tune --space search_spaces/quantization.py --data cifar10 --epochs 30

`begin=1` rounds after training; with a smaller value, training continues with rounded weights from
there on. Batch-norm statistics are recomputed. A budget of bytes is distributed by the layers'
sensitivity.
Cost: an epoch with rounded weights takes about one and a half times as long as one without.
Expected: 8 bits cost no accuracy either way; with 4 bits or fewer, training with rounded weights
pays.
"""

from dataclasses import replace

from raybench.techniques.quantize import Quantize
from trainers.pruning import base

objectives = {"accuracy": "max", "model_bytes": "min"}
enqueue = [{"weights": "fp32", "lr": 0.1}]


def space(trial):
    weights = trial.suggest_categorical("weights", ["uniform", "budgeted", "fp32"])
    return replace(
        base,
        quantize=None if weights == "fp32" else quantized(trial, weights == "budgeted"),
        recipe=replace(
            base.recipe,
            lr=trial.suggest_float("lr", 0.03, 0.5, log=True),
            renew_norms=32,
        ),
    )


def quantized(trial, budgeted):
    bits, budget = 8, 0
    if budgeted:
        budget = 1000 * trial.suggest_int("budget_kb", 75, 250)  # ResNet-20: 68 kB at 2 bits
    else:
        bits = trial.suggest_int("bits", 2, 8)
    trained = trial.suggest_categorical("trained", [True, False])
    return Quantize(
        bits=bits,
        budget_bytes=budget,
        activation_bits=trial.suggest_categorical("activation_bits", [32, 8, 4]),
        begin=trial.suggest_float("begin", 0.1, 0.8) if trained else 1.0,
    )
