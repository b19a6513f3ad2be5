"""How much accuracy do ResNet-20 and ResNet-44 keep when pruned, and as a super model?

    python -m raybench.tune --space search_spaces/super_model_ladder.py --trials 30 \\
        --data cifar10 --epochs 30 --stopping none
    python -m raybench.report results/super_model_ladder

A fixed design instead of a search, the reference's table: the plain network, the pruned one and the
super model at 60 and 70 % sparsity, for both networks and three seeds. The super model is trained
with augmentation, pruned and quantized to 8 bits; all use the precision that is fast on this
machine.
Cost: on CIFAR-10 30 x 30 epochs, 80 to 90 s per epoch on one core for ResNet-20, 170 s for
ResNet-44.
Expected: the super model is as accurate as the pruned network, in a file 8 times smaller than that
of torch.save.
"""

from dataclasses import replace

from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from trainers.super_model import base

MODELS = ["resnet20", "resnet44"]
STEPS = ["base", "pruned 60 %", "pruned 70 %", "super model 60 %", "super model 70 %"]
SEEDS = [0, 1, 2]

objectives = {"accuracy": "max", "model_bytes": "min"}
enqueue = [
    {"model": model, "step": step, "seed": seed}
    for seed in SEEDS
    for model in MODELS
    for step in STEPS
]


def space(trial):
    step = trial.suggest_categorical("step", STEPS)
    whole = step.startswith("super model")
    sparsity = 0.7 if step.endswith("70 %") else 0.6
    return replace(
        base,
        model=trial.suggest_categorical("model", MODELS),
        seed=trial.suggest_categorical("seed", SEEDS),
        prune=None if step == "base" else Prune(final_sparsity=sparsity),
        quantize=Quantize(bits=8) if whole else None,
        recipe=replace(base.recipe, cutout=8 if whole else 0),
    )
