"""Which ingredient of the super model contributes accuracy, bytes or seconds?

    python -m raybench.tune --space search_spaces/attribution.py --trials 21 \\
        --data cifar10 --epochs 30 --stopping none
    python -m raybench.report results/attribution --attribution

A fixed design instead of a search, with equal epochs over three seeds: all five ingredients of the
reference's super model, all but one for each of the five, and none.
Cost: on CIFAR-10 21 x 30 epochs of 80 to 90 s on one core in bf16, 15 of the 21 trials on two
workers; fp32, rounded weights and cutout take longer.
Expected: quantization and pruning give the bytes, mixed precision and the second worker the
seconds, augmentation the accuracy.
"""

from dataclasses import replace

from raybench.experiment import Parallel
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from trainers.pruning import base

INGREDIENTS = ["augmentation", "pruning", "mixed precision", "quantization", "two workers"]
WITHOUT = ["all", "nothing", *INGREDIENTS]  # the plain network first
SEEDS = [0, 1, 2]

objectives = {"accuracy": "max", "model_bytes": "min"}
enqueue = [{"without": one, "seed": seed} for seed in SEEDS for one in WITHOUT]


def space(trial):
    without = trial.suggest_categorical("without", WITHOUT)
    on = {name: without not in (name, "all") for name in INGREDIENTS}
    augmentation = {"crop": 4, "flip": True, "cutout": 8} if on["augmentation"] else PLAIN
    return replace(
        base,
        seed=trial.suggest_categorical("seed", SEEDS),
        recipe=replace(
            base.recipe, precision="bf16" if on["mixed precision"] else "fp32", **augmentation
        ),
        parallel=Parallel(workers=2 if on["two workers"] else 1),
        prune=Prune(final_sparsity=0.6) if on["pruning"] else None,
        quantize=Quantize(bits=8) if on["quantization"] else None,
    )


PLAIN = {"crop": 0, "flip": False, "cutout": 0}
