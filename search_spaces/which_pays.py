"""Which technique pays? The settings of `raybench.compare`, for a search over all at once.

    python -m raybench.tune --space search_spaces/which_pays.py                      # digits
    python -m raybench.tune --space search_spaces/which_pays.py --data cifar10 --subset 0.2

`raybench.compare` runs a baseline, equal tuning and paired seeds, and ends with a verdict. This
space has the same settings and lets a search combine them: it gives a front, but no verdict.
Cost: a trial of ResNet-20 on digits takes 10 s on a core.
Expected: pruning and quantization save bytes, fewer channels save seconds, averaged weights gain
accuracy.
"""

from dataclasses import replace

from optuna import TrialPruned

from raybench.experiment import conflicts
from raybench.verdict.arms import settings_of
from trainers.which_pays import base

MODEL = "resnet20_b"  # its channels can be cut
TECHNIQUES = ["prune_channels", "prune", "quantize", "ema"]

objectives = {"accuracy": "max", "model_bytes": "min"}
enqueue = [{"lr": base.recipe.lr} | dict.fromkeys(TECHNIQUES, 0)]


def space(trial):
    recipe = replace(base.recipe, lr=trial.suggest_float("lr", 0.02, 0.5, log=True))
    experiment = replace(base, model=MODEL, recipe=recipe)
    for name in TECHNIQUES:
        settings = settings_of(name, base, teacher="")
        number = trial.suggest_int(name, 0, len(settings))  # 0: off
        if number:
            experiment = replace(experiment, **settings[number - 1])
    if apart := conflicts(experiment):
        raise TrialPruned(apart[0])
    return experiment
