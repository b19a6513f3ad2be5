"""Is a network of twice the width, sparse and with few bits, more accurate, as fast and smaller?

    for seed in 0 1 2; do for model in resnet20 resnet20x2_b; do
        python -m raybench.train super_model --model $model --data cifar10 --seed $seed \\
            --subset 0.3 --recipe.epochs 6 --store results/trained/$model-$seed.safetensors
    done; done
    python -m raybench.tune --space search_spaces/wide_ladder.py --trials 9 \\
        --data cifar10 --subset 0.3 --epochs 3 --stopping none

A fixed design instead of a search: ResNet-20 in fp32, and a network twice as wide with 60 % zeros
and 4 bits, with all or three quarters of its channels, by three seeds. Each arm starts
from the dense network of its width and seed and trains for the same number of epochs; the dense
wide network is also the teacher of the compressed ones. Latency is that of the shipped graph.
Cost: on CIFAR-10 about 10 s on one core per epoch of 5,000 images for the narrow network, 35 for
the wide.
Expected: the wide networks are more accurate in a third of the bytes, and the cut one is not
slower. Over three seeds the cut one was 0.4 points more accurate, in 0.17 of the bytes.
"""

from dataclasses import replace

from raybench.techniques.distill import Distill
from raybench.techniques.prune import Prune
from raybench.techniques.prune_channels import PruneChannels
from raybench.techniques.quantize import Quantize
from trainers.super_model import base

TRAINED = "results/trained/{model}-{seed}.safetensors"
ARMS = ["narrow", "wide, cut", "wide"]
SEEDS = [0, 1, 2]

objectives = {"accuracy": "max", "model_bytes": "min", "latency_ms": "min"}
enqueue = [{"arm": arm, "seed": seed} for arm in ARMS for seed in SEEDS]


def space(trial):
    arm = trial.suggest_categorical("arm", ARMS)
    seed = trial.suggest_categorical("seed", SEEDS)
    model = "resnet20" if arm == "narrow" else "resnet20x2_b"
    trained = TRAINED.format(model=model, seed=seed)
    experiment = replace(
        base,
        model=model,
        seed=seed,
        start_from=trained,
        recipe=replace(base.recipe, lr=0.05, warmup=0.1),
    )
    if arm == "narrow":
        return experiment
    return replace(
        experiment,
        prune_channels=PruneChannels(ratio=0.25, at=0.0) if arm == "wide, cut" else None,
        prune=Prune(final_sparsity=0.6, begin=0.0, end=0.4),
        quantize=Quantize(bits=4, begin=0.5),
        distill=Distill(teacher=trained),
    )
