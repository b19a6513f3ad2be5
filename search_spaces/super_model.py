"""Which combination is small, fast and accurate?

    python -m raybench.tune --space search_spaces/super_model.py --trials 29        # digits
    python -m raybench.tune --space search_spaces/super_model.py --data cifar10 --epochs 30
    python -m raybench.train super_model --data cifar10 --recipe.epochs 30 --store net.safetensors
    RAYBENCH_START=net.safetensors RAYBENCH_TEACHER=net.safetensors python -m raybench.tune \\
        --space search_spaces/super_model.py --data cifar10 --epochs 10

It searches sparsity, schedule, bits, augmentation, distillation, width and learning rate. The
search starts with the dense network and three good points: 60 % and 8 bits, 80 % and 4, 90 % and 3.
With RAYBENCH_START, a trained model of the same data, every trial starts from that model and keeps
its width; few epochs are then enough. RAYBENCH_TEACHER is a trained model too; without it there is
no distillation. Latency is measured at the end of a trial; early stopping uses the two objectives
that every epoch reports.
Cost: an epoch takes as long as in search_spaces/pruning.py, and three to four times that for the
wider network. The graph and its latency take about ten seconds per trial.
Expected: few bits and high sparsity beat the dense network in bytes and milliseconds at the same
accuracy. The wide one takes a quarter more time in int8 than the narrow one in fp32.
"""

import os
from dataclasses import replace

from raybench import artefact, models
from raybench.techniques.distill import Distill
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from raybench.training import trained
from trainers.super_model import base

START = os.environ.get("RAYBENCH_START", "")
TEACHER = os.environ.get("RAYBENCH_TEACHER", "")
for address in filter(None, (START, TEACHER)):
    trained.find(address)  # a missing file is reported at once
MODELS = ["resnet20", "resnet20x2"]
if START:
    MODELS = [artefact.about(trained.find(START)).experiment.model]
    if models.is_import_path(MODELS[0]):  # a file must not cause an import
        raise ValueError(f"{START} is of {MODELS[0]}: name it in a space of your own")

objectives = {"accuracy": "max", "model_bytes": "min", "latency_ms": "min"}
KNOWN = {"model": MODELS[0], "schedule": "polynomial", "lr": 0.1, "prune_begin": 0.1}
DENSE = {"model": MODELS[0], "schedule": "none", "bits": 32, "lr": 0.1, "mixup": 0.0, "cutout": 0}
enqueue = [
    DENSE | {"label_smoothing": 0.0} | ({"distilled": False} if TEACHER else {}),
    KNOWN | {"sparsity": 0.6, "bits": 8, "quantize_begin": 0.5},
    KNOWN | {"sparsity": 0.8, "bits": 4, "quantize_begin": 0.5},
    KNOWN | {"sparsity": 0.9, "bits": 3, "quantize_begin": 0.5},
]


def space(trial):
    schedule = trial.suggest_categorical("schedule", ["polynomial", "constant", "none"])
    prune = None
    if schedule != "none":
        prune = Prune(
            schedule=schedule,
            final_sparsity=trial.suggest_float("sparsity", 0.3, 0.95),
            begin=trial.suggest_float("prune_begin", 0.0, 0.3),
        )
    bits = trial.suggest_categorical("bits", [32, 8, 6, 4, 3, 2])
    quantize = None
    if bits < 32:
        quantize = Quantize(bits=bits, begin=trial.suggest_float("quantize_begin", 0.3, 0.9))
    distill = None
    if TEACHER and trial.suggest_categorical("distilled", [False, True]):
        distill = Distill(
            teacher=TEACHER,
            temperature=trial.suggest_float("temperature", 1.0, 8.0),
            weight=trial.suggest_float("teacher_weight", 0.3, 10.0, log=True),
        )
    return replace(
        base,
        model=trial.suggest_categorical("model", MODELS),
        start_from=START,
        prune=prune,
        quantize=quantize,
        distill=distill,
        recipe=replace(
            base.recipe,
            lr=trial.suggest_float("lr", 0.03, 0.5, log=True),
            mixup=trial.suggest_categorical("mixup", [0.0, 0.2]),
            cutout=trial.suggest_categorical("cutout", [0, 8]),
            label_smoothing=trial.suggest_categorical("label_smoothing", [0.0, 0.1]),
        ),
    )
