"""Recipe: how a model is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the model is trained: optimizer, learning rate, batch, augmentation, precision."""

    epochs: int = 10
    """Number of passes over the training images."""
    batch: int = 128
    """Images per step, over all workers together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd uses Nesterov momentum; adamw uses the default betas."""
    lr: float = 0.1
    """Peak learning rate, at the end of the warm-up."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 5e-4
    """Weight decay of convolutions and linear layers; not applied to norms and biases."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay of the learning rate from `lr` to 0 after the warm-up."""
    warmup: float = 0.1
    """Share of all steps in which the learning rate rises from 0."""
    label_smoothing: float = 0.0
    """Share of the label's weight that is distributed over all classes."""
    crop: int = 4
    """Largest shift of the random crop, in pixels; 0 is no crop."""
    flip: bool = True
    """Horizontal flips: in every two epochs each image is flipped once (as in airbench)."""
    mixup: float = 0.0
    """Images and labels are mixed in pairs; the share is drawn from Beta(mixup, mixup), the `alpha`
    of Zhang et al. 2018. 0 is off."""
    cutout: int = 0
    """Side in pixels of a square in each image that is set to the mean (DeVries & Taylor 2017).
    0 is off."""
    renew_norms: int = 0
    """Training batches over which batch-norm statistics are recomputed before evaluation. Useful
    after pruning or rounding, or after few training steps; 0 keeps the running statistics."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """bf16 and fp16 use autocast; fp16 scales the loss and needs a GPU. `auto` uses bf16 if the
    processor is faster in it: on GPUs, AMX, and AMD's AVX-512. Evaluation is in fp32."""

    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the model's forward and backward pass. auto: on a GPU, in one process, if no
    technique reads its layers' state on the host in every step; never on a CPU, where it gave no
    speed-up and took 52 to 98 s."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}: it must be above 0")
        for name in ("momentum", "weight_decay", "crop", "mixup", "cutout", "renew_norms"):
            if not getattr(self, name) >= 0:  # `not >=`, so that NaN is refused as well
                raise ValueError(f"{name} is {getattr(self, name)}: it must not be negative")
        if math.isinf(self.mixup):
            raise ValueError("mixup is inf: the alpha of a Beta distribution is finite")
        for name in ("warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it lies in [0, 1)")
