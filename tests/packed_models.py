"""Networks to pack, the codecs of their tensors, and whether all bits are the same."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from raybench.artefact import codecs, packed
from raybench.models import build
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from trainers.pruning import base

NAME = "resnet20"


def quantized(
    sparsity: float, bits: int, *, name: str = NAME, size: int = 32, seed: int = 0
) -> tuple[nn.Module, packed.Experiment]:
    """A network with lively batch norms, pruned and rounded, and its Experiment."""
    torch.manual_seed(seed)
    prune = Prune(final_sparsity=sparsity, schedule="constant", begin=1.0)
    quantize = Quantize(bits=bits, begin=1.0)
    experiment = replace(base, model=name, image_size=size, prune=prune, quantize=quantize)
    model = build(name, classes=10, image_size=size)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.2)
    for technique in (prune, quantize):
        technique.reshape(model)
    for technique in (prune, quantize):
        technique.finish(model, {})
    return model.eval(), experiment


def bits_of(tensor: Tensor) -> bytes:
    return codecs.byte_rows(tensor).tobytes()


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert tensor.shape == other[name].shape, name
        assert bits_of(tensor) == bits_of(other[name]), name


def chosen(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {name: codecs.choose(name, tensors)[0] for name in tensors}
