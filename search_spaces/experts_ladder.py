"""Is a ViT with experts as accurate as the plain one, over three seeds?

    python -m raybench.tune --space search_spaces/experts_ladder.py --trials 6 \\
        --data cifar10 --subset 0.4 --epochs 5 --stopping none

A fixed design instead of a search: `enqueue` lists the experiments. The first six are the plain ViT
and 8 experts; `--trials 12` adds 32 and 64.
Cost: 10 to 17 minutes per trial, on two cores with 4 blocks of width 192, 18,000 images and 5
epochs.
Expected: 8 experts are as accurate as the plain ViT or better; 64 are worse, because each one sees
a 64th of the few images.
"""

from dataclasses import replace

from raybench.techniques.switch import Switch
from trainers.switch_vit import base

MODEL = "vit192x4"  # on a GPU the family's base, "vit300": 12 blocks
EXPERTS = [0, 8, 32, 64]
SEEDS = [0, 1, 2]

objectives = {"accuracy": "max", "s_per_epoch": "min"}
enqueue = [
    {"experts": experts, "seed": seed}
    for pair in (EXPERTS[:2], EXPERTS[2:])
    for seed in SEEDS
    for experts in pair
]


def space(trial):
    experts = trial.suggest_categorical("experts", EXPERTS)
    return replace(
        base,
        model=MODEL,
        seed=trial.suggest_categorical("seed", SEEDS),
        switch=Switch(experts=experts) if experts else None,
        recipe=replace(base.recipe, lr=1e-3),
    )
