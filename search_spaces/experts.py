"""How many experts, in which blocks, and with which balancing?

    python -m raybench.tune --space search_spaces/experts.py                   # digits
    python -m raybench.tune --space search_spaces/experts.py --data cifar10 --epochs 30

Cost: a core trains about 80 images a second, so a trial of 8 epochs on the embedded digits takes
about two minutes, and an epoch of CIFAR-10 nine. The ViT has the width of the preset's base, but 4
blocks instead of 12; on a GPU remove the model from `replace(base, ...)` below.
Expected: a mixture takes up to a quarter more time than the plain ViT. On few images a few experts
are as accurate as many; the reference project lost two points with 32 and 64.
"""

import math
from dataclasses import replace

from raybench.techniques.switch import Switch
from trainers.switch_vit import base

objectives = {"accuracy": "max", "s_per_epoch": "min"}
enqueue = [{"experts": 0, "lr": base.recipe.lr}]  # the plain ViT


def space(trial):
    experts = trial.suggest_categorical("experts", [0, 4, 8, 16, 32])
    switch = None
    if experts:
        switch = Switch(
            experts=experts,
            blocks=trial.suggest_categorical("blocks", ["all", "second", "last_two"]),
            capacity_factor=trial.suggest_categorical("capacity_factor", [1.0, 1.5, math.inf]),
            gate=trial.suggest_categorical("gate", ["probability", "normalized"]),
            balance_loss=trial.suggest_float("balance_loss", 1e-3, 1e-1, log=True),
            z_loss=trial.suggest_float("z_loss", 1e-4, 1e-2, log=True),
            shared_expert=trial.suggest_categorical("shared_expert", [False, True]),
        )
    return replace(
        base,
        model="vit300x4",
        switch=switch,
        recipe=replace(base.recipe, lr=trial.suggest_float("lr", 1e-4, 2e-3, log=True)),
    )
