"""Is Monarch as accurate as dense layers, and better than low-rank layers of the same size?

    python -m raybench.tune --space search_spaces/monarch_ladder.py --trials 12 \\
        --data cifar10 --subset 0.2 --epochs 6 --stopping none

A fixed design instead of a search: `enqueue` lists dense, Monarch, low-rank and sparse-to-dense by
three seeds.
Cost: a dense trial of 9,000 images and 6 epochs takes 6 minutes on a core, a low-rank one 4.
Expected: Monarch is within 0.3 points of dense and above low-rank; sparse-to-dense equals dense.
"""

from dataclasses import replace

from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from trainers.monarch import base

MODEL = "vit192x4"  # on a GPU "vit_small_patch16_224", with image_size=224
BLOCKS = 4
KINDS = ["dense", "monarch", "low_rank", "sparse_to_dense"]
SEEDS = [0, 1, 2]

objectives = {"accuracy": "max", "s_per_epoch": "min"}
enqueue = [{"kind": kind, "seed": seed} for seed in SEEDS for kind in KINDS]


def space(trial):
    kind = trial.suggest_categorical("kind", KINDS)
    monarch = {
        "monarch": Monarch(blocks=BLOCKS),
        "sparse_to_dense": Monarch(blocks=BLOCKS, mode="sparse_to_dense", switch_at=0.6),
    }
    return replace(
        base,
        model=MODEL,
        seed=trial.suggest_categorical("seed", SEEDS),
        monarch=monarch.get(kind),
        low_rank=LowRank(blocks=BLOCKS) if kind == "low_rank" else None,
        recipe=replace(base.recipe, lr=1e-3),
    )
