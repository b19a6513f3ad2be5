"""ZeRO, second stage: a worker also keeps only its part of the gradients.

    backward pass   ◀── layer 1 │ layer 2 │ layer 3 │ layer 4 ◀──
    buckets             [   bucket 1      │    bucket 0     ]
                                 └ reduce-scatter after its last gradient; other parts are freed

Rajbhandari et al. 2020, "ZeRO", section 5.2. FSDP2 with `reshard_after_forward=False` is often
called ZeRO-2, but between two steps it holds only a part of the parameters: it is a ZeRO-3 that
gathers only once per step. Here every worker always has all parameters.
"""

from __future__ import annotations

import torch

from raybench.parallel.buckets import Bucket
from raybench.parallel.zero1 import Zero1


class Zero2(Zero1):
    """`Zero1` that reduces each bucket during the backward pass and frees its whole gradient."""

    def _arrived(self, bucket: Bucket) -> None:
        super()._arrived(bucket)
        if self._waiting[bucket] == 0:
            self._reduce(bucket)

    def _reduce(self, bucket: Bucket) -> None:
        part = torch.empty_like(bucket.part)
        self.exchange.reduce_scatter(part, bucket.take_gradients())
        bucket.part.grad = part
