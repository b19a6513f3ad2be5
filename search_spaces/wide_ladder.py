"""Is a sparse int8 network twice as wide better than the plain narrow one, as fast, and smaller?

    python -m raybench.tune --space search_spaces/wide_ladder.py --trials 9 \\
        --data cifar10 --subset 0.5 --epochs 4 --no-early-stopping

Not a search but a design: ResNet-20 in fp32, and the same twice as wide with 80 % zeros and 4 bits,
whole and with a quarter of its channels cut, by three seeds. Latency is of what is shipped.
Cost: on CIFAR-10 some 10 s of a core for 5,000 images and epoch of the narrow one, 35 of the cut.
Expected: in a third of the bytes the wide ones are more accurate, and the cut one is not slower.
In 3 epochs of 13,500 images the cut one is 0.9 points below.
"""

from dataclasses import replace

from raybench.techniques.prune import Prune
from raybench.techniques.prune_channels import PruneChannels
from raybench.techniques.quantize import Quantize
from trainers.super_model import base

ARMS = ["narrow", "wide, cut", "wide"]
SEEDS = [0, 1, 2]

objectives = {"accuracy": "max", "model_bytes": "min", "latency_ms": "min"}
enqueue = [{"arm": arm, "seed": seed} for arm in ARMS for seed in SEEDS]


def space(trial):
    arm = trial.suggest_categorical("arm", ARMS)
    seed = trial.suggest_categorical("seed", SEEDS)
    if arm == "narrow":
        return replace(base, seed=seed)
    return replace(
        base,
        model="resnet20x2_b",
        seed=seed,
        prune_channels=PruneChannels(ratio=0.25, at=0.25) if arm == "wide, cut" else None,
        prune=Prune(final_sparsity=0.8, begin=0.45, end=0.75),
        quantize=Quantize(bits=4),
    )
