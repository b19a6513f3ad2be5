"""ZeRO, second stage: gradients, too, are kept for the worker's part alone.

    backward pass   ◀── layer 1 │ layer 2 │ layer 3 │ layer 4 ◀──
    buckets             [   bucket 1      │    bucket 0     ]
                                 └ reduce-scatter when its last gradient is there; the whole goes

Rajbhandari et al. 2020, "ZeRO", section 5.2. FSDP2 with `reshard_after_forward=False` is often
called so; between two steps it holds a part of the parameters as well, and is a ZeRO-3 that
gathers once. Here every worker has all parameters all the time.
"""

from __future__ import annotations

import torch

from raybench.parallel.buckets import Bucket
from raybench.parallel.zero1 import Zero1


class Zero2(Zero1):
    """`Zero1` that reduces each bucket in the midst of the backward pass, and frees its whole."""

    def _arrived(self, bucket: Bucket) -> None:
        super()._arrived(bucket)
        if self._waiting[bucket] == 0:
            self._reduce(bucket)

    def _reduce(self, bucket: Bucket) -> None:
        part = torch.empty_like(bucket.part)
        self.exchange.reduce_scatter(part, bucket.take_gradients())
        bucket.part.grad = part
