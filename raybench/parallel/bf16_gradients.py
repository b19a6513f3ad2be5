"""DDP that sends gradients as bf16: half the bytes, with a mantissa of seven bits.

torch's own `bf16_compress_hook` refuses gloo. Here values are rounded before they are sent, summed
over the workers in fp32, and rounded once more on the way back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future

from raybench.parallel.ddp import Replicas
from raybench.parallel.exchange import done


class Bf16Gradients(Replicas):
    """`Replicas` with rounded gradients; with one worker nothing is rounded."""

    def reduce(self, bucket: GradBucket) -> Future[Tensor]:
        self.exchange.all_reduce_as(bucket.buffer(), torch.bfloat16)
        return done(bucket.buffer())

    def sent_bytes_per_step(self, model: nn.Module, steps: int) -> float:
        return self.counted_bytes_per_step(steps)
