"""How much accuracy do pruning and few bits cost a trained ResNet-20, over three seeds?

    for seed in 0 1 2; do
        python -m raybench.train pruning --data cifar10 --recipe.epochs 6 --seed $seed \\
            --store results/trained/$seed.safetensors
    done
    python -m raybench.tune --space search_spaces/compression_ladder.py --trials 21 \\
        --data cifar10 --subset 0.5 --epochs 2 --stopping none

A fixed design instead of a search, like `sparsity_ladder.py`: seven arms by three seeds. Every arm
starts from the trained network of its seed, which is also the teacher of the distilled arm. All
arms train for the same number of epochs, so the dense one is a fair baseline.
Cost: on CIFAR-10 3 x 6 epochs of 80 to 90 s on one core, and 21 x 2 epochs of half of the images.
Expected: 60 % and 8 bits within 0.3 points of dense, 80 % and 4 bits within 1 with a teacher.
"""

from dataclasses import replace

from raybench.techniques.distill import Distill
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from trainers.pruning import base

TRAINED = "results/trained/{seed}.safetensors"
ARMS = {  # sparsity, bits, whether distilled
    "dense": (0.0, 0, False),
    "60 %": (0.6, 0, False),
    "60 %, 8 bits": (0.6, 8, False),
    "80 %": (0.8, 0, False),
    "80 %, 4 bits": (0.8, 4, False),
    "dense, taught": (0.0, 0, True),
    "80 %, 4 bits, taught": (0.8, 4, True),
}
SEEDS = [0, 1, 2]

objectives = {"accuracy": "max", "model_bytes": "min"}
enqueue = [{"arm": arm, "seed": seed} for seed in SEEDS for arm in ARMS]


def space(trial):
    sparsity, bits, taught = ARMS[trial.suggest_categorical("arm", list(ARMS))]
    seed = trial.suggest_categorical("seed", SEEDS)
    trained = TRAINED.format(seed=seed)
    return replace(
        base,
        seed=seed,
        start_from=trained,
        prune=Prune(final_sparsity=sparsity, begin=0.0, end=0.4) if sparsity else None,
        quantize=Quantize(bits=bits, begin=0.5) if bits else None,
        distill=Distill(teacher=trained) if taught else None,
        recipe=replace(base.recipe, lr=0.05, warmup=0.1),
    )
