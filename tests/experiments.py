"""Experiments to test with: a fixed one, and random ones."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from raybench.experiment import (
    Experiment,
    Parallel,
    Recipe,
)
from raybench.techniques.distill import Distill
from raybench.techniques.low_rank import LowRank
from raybench.techniques.monarch import Monarch
from raybench.techniques.prune import Prune
from raybench.techniques.prune_channels import PruneChannels
from raybench.techniques.quantize import Quantize
from raybench.techniques.switch import Switch

GOLDEN = Experiment(
    family="pruning",
    model="resnet44",
    recipe=Recipe(epochs=3, lr=0.25),
    prune=Prune(final_sparsity=0.8, scope="layer"),
)


GOLDEN_KEY = "a24ee2255b36aae3"


shares = st.floats(0, 1, exclude_max=True)


recipes = st.builds(
    Recipe,
    epochs=st.integers(1, 1000),
    batch=st.integers(1, 256).map(lambda n: 4 * n),
    optimizer=st.sampled_from(["sgd", "adamw"]),
    lr=st.floats(1e-9, 1e3),
    momentum=shares,
    weight_decay=st.floats(0, 10),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    warmup=shares,
    label_smoothing=shares,
    crop=st.integers(0, 8),
    flip=st.booleans(),
    mixup=st.floats(0, 10),
    cutout=st.integers(0, 7),
    precision=st.sampled_from(["auto", "fp32", "bf16"]),
)


prunes = st.builds(
    Prune,
    final_sparsity=st.floats(0.5, 1, exclude_max=True),
    initial_sparsity=st.floats(0, 0.5),
    schedule=st.sampled_from(["polynomial", "constant"]),
    begin=st.floats(0, 0.5, exclude_max=True),
    end=st.floats(0.5, 1),
    power=st.floats(0.1, 10),
    frequency=st.integers(1, 1000),
    scope=st.sampled_from(["global", "layer"]),
)


switches = st.builds(
    Switch,
    experts=st.just(0) | st.integers(2, 1000),
    blocks=st.sampled_from(["all", "second", "last_two", "0", "1,3,5"]),
    top_k=st.sampled_from([1, 2]),
    capacity_factor=st.floats(0, math.inf, exclude_min=True),
    gate=st.sampled_from(["probability", "normalized"]),
    balance_loss=st.floats(0, 10),
    z_loss=st.floats(0, 10),
    jitter=shares,
    shared_expert=st.booleans(),
    upcycle=st.booleans(),
)


structured = {
    "blocks": st.just(0) | st.integers(2, 16),
    "layers": st.sampled_from(["both", "attention", "feed_forward", "all"]),
    "leave_out": st.just("") | st.text(max_size=5),
    "scale_lr": st.booleans(),
}


monarchs = st.builds(
    Monarch,
    **structured,
    mode=st.sampled_from(["from_scratch", "dense_to_sparse", "sparse_to_dense"]),
    switch_at=st.floats(0, 1),
)


low_ranks = st.builds(LowRank, **structured)


channel_cuts = st.builds(
    PruneChannels,
    ratio=shares,
    round_to=st.integers(1, 64),
    at=st.floats(0, 1),
)


quantizes = st.builds(
    Quantize,
    bits=st.just(0) | st.integers(2, 8),
    activation_bits=st.integers(2, 8) | st.just(32),
    ends_bits=st.integers(2, 8),
    begin=st.floats(0, 1),
    budget_bytes=st.integers(0, 2**40),
)


distills = st.builds(
    Distill,
    teacher=st.just("") | st.text(max_size=5),
    temperature=st.floats(0.1, 100),
    weight=st.floats(0, 100),
)


experiments = st.builds(
    Experiment,
    family=st.just("pruning"),
    model=st.text(max_size=5),
    data=st.text(max_size=5),
    image_size=st.integers(8, 224),
    subset=st.floats(0, 1, exclude_min=True),
    seed=st.integers(-5, 2**40),
    recipe=recipes,
    parallel=st.builds(Parallel, workers=st.sampled_from([1, 2, 4])),
    start_from=st.just("") | st.text(max_size=5),
    switch=st.none() | switches,
    monarch=st.none() | monarchs,
    low_rank=st.none() | low_ranks,
    prune_channels=st.none() | channel_cuts,
    prune=st.none() | prunes,
    quantize=st.none() | quantizes,
    distill=st.none() | distills,
)
