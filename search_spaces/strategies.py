"""Which parallel strategy gives the most samples per second, and which needs the least memory?

    python -m raybench.tune --space search_spaces/strategies.py --stopping none
    python -m raybench.tune --space search_spaces/strategies.py --data beans --workers 2

Cost: on the embedded digits, at 32 pixels and with a ViT of 4 blocks, a trial of one epoch takes
seconds on two cores, and 13 to 25 s more if its number of workers differs from the previous
trial's. On GPUs remove model, data and image_size from `replace(base, ...)` below for the base,
ViT-B/16 on Beans.
Expected: with two workers zero1 is as fast as ddp with half of the optimizer's state per worker;
zero3 is a sixth slower with half of all states. With one worker all strategies are the same.
"""

from dataclasses import replace

from raybench.experiment import Parallel
from trainers.strategies import base

objectives = {"samples_per_s": "max", "memory_bytes": "min"}
enqueue = [{"workers": 1, "batch_per_worker": 8, "checkpointing": False, "precision": "fp32"}]


def space(trial):
    workers = trial.suggest_categorical("workers", [1, 2])
    strategy = "ddp"
    if workers > 1:
        names = ["ddp", "bf16_gradients", "powersgd", "zero1", "zero2", "zero3", "zero3_offload"]
        strategy = trial.suggest_categorical("strategy", names)
    each = trial.suggest_categorical("batch_per_worker", [8, 32])
    return replace(
        base,
        model="vit192x4",
        data="digits",
        image_size=32,
        recipe=replace(
            base.recipe,
            epochs=1,
            batch=each * workers,
            precision=trial.suggest_categorical("precision", ["auto", "fp32"]),
        ),
        parallel=Parallel(
            workers=workers,
            strategy=strategy,
            checkpointing=trial.suggest_categorical("checkpointing", [False, True]),
        ),
    )
