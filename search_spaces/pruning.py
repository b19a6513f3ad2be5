"""How far can ResNet-20 and ResNet-44 be pruned, at 32, 8 or 4 bits, before they lose accuracy?

    python -m raybench.tune --space search_spaces/pruning.py                   # digits
    python -m raybench.tune --space search_spaces/pruning.py --data cifar10 --epochs 30

Cost: 20 trials on the embedded digits take about three minutes on two cores; an epoch of CIFAR-10
takes about 80 s on a core for ResNet-20 and 170 s for ResNet-44.
Expected: no loss of accuracy up to 60 % sparsity; it falls from 80 % on, later for ResNet-44.
8 bits cost no accuracy at any sparsity.
"""

from dataclasses import replace

from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from trainers.pruning import base

MODELS = ["resnet20", "resnet44"]

objectives = {"accuracy": "max", "model_bytes": "min"}
# The dense networks, as baselines.
enqueue = [{"schedule": "none", "bits": 32, "model": model, "lr": 0.1} for model in MODELS]


def space(trial):
    schedule = trial.suggest_categorical("schedule", ["polynomial", "constant", "none"])
    prune = None
    if schedule != "none":
        prune = Prune(
            schedule=schedule,
            final_sparsity=trial.suggest_float("sparsity", 0.3, 0.95),
            begin=trial.suggest_float("begin", 0.0, 0.3),
            end=trial.suggest_float("end", 0.5, 0.8) if schedule == "polynomial" else 1.0,
            scope=trial.suggest_categorical("scope", ["global", "layer"]),
        )
    bits = trial.suggest_categorical("bits", [32, 8, 4])
    return replace(
        base,
        model=trial.suggest_categorical("model", MODELS),
        prune=prune,
        quantize=Quantize(bits=bits) if bits < 32 else None,
        recipe=replace(base.recipe, lr=trial.suggest_float("lr", 0.03, 0.5, log=True)),
    )
