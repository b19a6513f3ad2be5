"""Which Monarch matrices pay, and for how much of the training?

    python -m raybench.tune --space search_spaces/monarch.py                   # digits
    python -m raybench.tune --space search_spaces/monarch.py --data cifar10 --epochs 30

Cost: not timed as a whole; a core trains about 150 images/s with dense layers. The ViT is small,
with 4 blocks of width 192; on a GPU use `vit_small_patch16_224` and `image_size=224`.
Expected: 4 blocks lose little accuracy; sparse-to-dense reaches the accuracy of dense training in
less time; low-rank layers with as many parameters are faster than Monarch and less accurate.
"""

from dataclasses import replace

from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from trainers.monarch import base

MODEL = "vit192x4"

objectives = {"accuracy": "max", "s_per_epoch": "min"}
enqueue = [{"kind": "dense", "lr": base.recipe.lr}]


def space(trial):
    kind = trial.suggest_categorical("kind", ["dense", "monarch", "low_rank"])
    monarch = low_rank = None
    if kind != "dense":
        blocks = trial.suggest_categorical("blocks", [2, 4, 8])
        layers = trial.suggest_categorical("layers", ["attention", "feed_forward", "both"])
        if kind == "low_rank":
            low_rank = LowRank(blocks=blocks, layers=layers)
        else:
            mode = trial.suggest_categorical(
                "mode", ["from_scratch", "dense_to_sparse", "sparse_to_dense"]
            )
            share = 0.0 if mode == "from_scratch" else trial.suggest_float("switch_at", 0.2, 0.9)
            monarch = Monarch(blocks=blocks, layers=layers, mode=mode, switch_at=share)
    return replace(
        base,
        model=MODEL,
        monarch=monarch,
        low_rank=low_rank,
        recipe=replace(base.recipe, lr=trial.suggest_float("lr", 1e-4, 3e-3, log=True)),
    )
