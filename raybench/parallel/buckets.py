"""Parameters in flat buckets, each cut into one equal part per worker.

    parameters   │ weight │ weight  │ weight │pad│    views of one flat tensor
    workers      │   part 0    │    part 1       │    a worker's optimizer has only its part

SGD and AdamW update every value separately, so a part may end inside a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

BUCKET_BYTES = 16 << 20  # a bucket's full gradient is in memory during its reduction


class Bucket:
    """Some parameters of one optimizer group as views of `flat`; `part` is this worker's part."""

    def __init__(self, parameters: list[nn.Parameter], rank: int, workers: int) -> None:
        self.parameters, self.rank, self.workers = parameters, rank, workers
        numel = sum(parameter.numel() for parameter in parameters)
        self.numel = -(-numel // workers) * workers
        self.flat = parameters[0].detach().new_zeros(self.numel)
        for parameter, view in zip(parameters, self.views(self.flat), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        self.part = nn.Parameter(self.own(self.flat))

    def views(self, flat: Tensor) -> Iterator[Tensor]:
        """The parameters' places in a flat tensor, in their shapes and memory formats."""
        offset = flat.storage_offset()
        for parameter in self.parameters:
            yield flat.as_strided(parameter.shape, parameter.stride(), offset)
            offset += parameter.numel()

    def own(self, flat: Tensor) -> Tensor:
        """This worker's part of a flat tensor."""
        return flat.view(self.workers, -1)[self.rank]

    def take_gradients(self) -> Tensor:
        """All gradients as one flat tensor, with zeros where a parameter has none."""
        flat = torch.zeros_like(self.flat)
        for parameter, view in zip(self.parameters, self.views(flat), strict=True):
            if parameter.grad is not None:
                view.copy_(parameter.grad)
                parameter.grad = None
        return flat


def cut(parameters: Iterable[nn.Parameter], rank: int, workers: int) -> list[Bucket]:
    """Buckets of the parameters, last ones first, because their gradients are ready first."""
    buckets: list[Bucket] = []
    gathered: list[nn.Parameter] = []
    size = 0
    for parameter in reversed(list(parameters)):
        parameter_bytes = parameter.numel() * parameter.element_size()
        if gathered and size + parameter_bytes > BUCKET_BYTES:
            buckets.append(Bucket(gathered, rank, workers))
            gathered, size = [], 0
        gathered.append(parameter)
        size += parameter_bytes
    if gathered:
        buckets.append(Bucket(gathered, rank, workers))
    return buckets
