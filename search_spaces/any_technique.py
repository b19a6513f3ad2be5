"""Which techniques are worth combining: Monarch, pruning, few bits, experts?

    python -m raybench.tune --space search_spaces/any_technique.py                   # digits
    python -m raybench.tune --space search_spaces/any_technique.py --data cifar10 --epochs 30

One small ViT, with each technique on or off: the search may combine them all. The first trial is
the plain ViT, as the baseline.
Cost: a core trains about 150 images/s with dense layers; experts and quantization take longer.
Expected: quantization and pruning save bytes; Monarch saves bytes and seconds, and costs accuracy.
"""

from dataclasses import replace

from raybench.techniques.monarch import Monarch
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from raybench.techniques.switch import Switch
from trainers.switch_vit import base

MODEL = "vit192x4"
TECHNIQUES = ["switch", "monarch", "prune", "quantize"]

objectives = {"accuracy": "max", "model_bytes": "min"}
enqueue = [{"lr": base.recipe.lr} | dict.fromkeys(TECHNIQUES, False)]


def space(trial):
    on = {name: trial.suggest_categorical(name, [False, True]) for name in TECHNIQUES}
    switch = monarch = prune = quantize = None
    if on["switch"]:
        switch = Switch(experts=trial.suggest_categorical("experts", [4, 8]))
    if on["monarch"]:
        monarch = Monarch(blocks=trial.suggest_categorical("blocks", [2, 4]))
    if on["prune"]:
        prune = Prune(final_sparsity=trial.suggest_float("sparsity", 0.3, 0.9))
    if on["quantize"]:
        quantize = Quantize(bits=trial.suggest_categorical("bits", [8, 4]))
    return replace(
        base,
        model=MODEL,
        switch=switch,
        monarch=monarch,
        prune=prune,
        quantize=quantize,
        recipe=replace(base.recipe, lr=trial.suggest_float("lr", 1e-4, 2e-3, log=True)),
    )
