"""How much accuracy does each level of sparsity cost ResNet-20, over three seeds?

    python -m raybench.tune --space search_spaces/sparsity_ladder.py --trials 12 \\
        --data cifar10 --epochs 6 --stopping none

A fixed design instead of a search: `enqueue` lists twelve experiments, four sparsities by three
seeds.
Cost: on CIFAR-10 12 x 6 epochs, 80 to 90 s per epoch on one core.
Expected: 60 % within 0.3 points of dense, 80 % within 1.
"""

from dataclasses import replace

from raybench.techniques.prune import Prune
from trainers.pruning import base

LEVELS = [0.0, 0.6, 0.8, 0.9]
SEEDS = [0, 1, 2]

objectives = {"accuracy": "max", "model_bytes": "min"}
enqueue = [{"sparsity": level, "seed": seed} for seed in SEEDS for level in LEVELS]


def space(trial):
    level = trial.suggest_categorical("sparsity", LEVELS)
    return replace(
        base,
        seed=trial.suggest_categorical("seed", SEEDS),
        prune=Prune(final_sparsity=level) if level else None,
    )
