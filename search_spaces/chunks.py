"""How much faster is a pipeline of two stages with chunks, and what do fewer bits per value cost?

    python -m raybench.tune --space search_spaces/chunks.py                    # digits
    python -m raybench.tune --space search_spaces/chunks.py --data cifar10 --epochs 30

The table of `results/pipeline-runs` compares stages with threads and with data-parallel workers on
the same number of cores. These commands add their rows:

    python -m raybench.train pipeline --pipeline.stages 1 --pipeline.chunks 1    # threads
    python -m raybench.train pipeline --pipeline.stages 1 --pipeline.chunks 1 --workers 2

Cost: every trial takes two cores. One core trains ResNet-18 and MobileNetV2 at 60 images/s, and
VGG-11 at 217 (`python -m raybench.bench step`); an epoch of digits has 1,280 images.
Expected: at best 1.33, 1.60 and 1.78 times the speed of 1 chunk with 2, 4 and 8 chunks; with 8,
convolutions on few images lose a part of the gain.
"""

from dataclasses import replace

from raybench.experiment import Pipeline
from trainers.pipeline import base

BATCH = 128  # with the reference's 512, an epoch of digits has only two steps
MODELS = ["mobilenet_v2", "resnet18", "vgg11"]

objectives = {"accuracy": "max", "s_per_batch": "min"}
enqueue = [{"stages": 1, "chunks": 1, "model": model, "lr": 0.1} for model in MODELS]


def space(trial):
    stages = trial.suggest_categorical("stages", [2, 1])
    chunks = trial.suggest_categorical("chunks", [1, 2, 4, 8])
    pipeline = Pipeline(stages=stages, chunks=chunks)
    if stages > 1:
        pipeline = replace(pipeline, bits=trial.suggest_categorical("bits", [32, 16, 8, 4]))
    if stages > 1 and chunks > 1:
        schedule = trial.suggest_categorical("schedule", ["gpipe", "1f1b", "zero_bubble"])
        pipeline = replace(pipeline, schedule=schedule)
    return replace(
        base,
        model=trial.suggest_categorical("model", MODELS),
        pipeline=pipeline,
        recipe=replace(base.recipe, batch=BATCH, lr=trial.suggest_float("lr", 0.02, 0.4, log=True)),
    )
