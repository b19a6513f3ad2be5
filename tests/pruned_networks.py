"""A pruned ResNet-20, and what it means that two networks are the same."""

from __future__ import annotations

import torch

from raybench.models import build
from raybench.models.resnet_cifar import ResNetCifar
from raybench.techniques.prune import magnitude_masks, prunable


def pruned(sparsity: float, seed: int = 0, scope: str = "global") -> ResNetCifar:
    torch.manual_seed(seed)
    model = build("resnet20", classes=10, image_size=32)
    weights = prunable(model)
    for name, mask in magnitude_masks(dict(weights), sparsity, scope).items():
        weights[name].data.masked_fill_(~mask, 0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.num_batches_tracked.fill_(seed + 12345)
    return model


def assert_same_bits(one: torch.nn.Module, other: torch.nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert torch.equal(tensor, right[name]), name
