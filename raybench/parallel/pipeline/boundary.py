"""Boundary: sends a chunk's tensor from one stage to the next, and its gradient back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raybench.parallel.pipeline.codec import Bits, Codec, Health
from raybench.parallel.pipeline.transport import Link


@dataclass(frozen=True)
class Form:
    """Shape and dtype of a chunk's activations between two blocks."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def wire_shape(self) -> tuple[int, ...]:
        """The order of the values in memory: channels last if there are height and width."""
        if len(self.shape) != 4:
            return self.shape
        b, c, h, w = self.shape
        return (b, h, w, c)


@torch.no_grad()
def forms(blocks: list[nn.Module], image_size: int, batch: int, dtype: torch.dtype) -> list[Form]:
    """The form after each block for chunks of `batch` images; runs one image through them."""
    device = next(p for block in blocks for p in block.parameters()).device
    x = torch.zeros(1, 3, image_size, image_size, device=device)
    after_blocks = []
    for block in blocks:
        training = block.training
        block.eval()  # batch norms neither count this image nor divide by its variance
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            x = block(x)
        block.train(training)
        after_blocks.append(Form((batch, *x.shape[1:]), x.dtype))
    return after_blocks


def message_bytes(form: Form, bits: Bits) -> int:
    """Bytes of every message that carries such a tensor or its gradient."""
    return Codec(bits).message_bytes(form.wire_shape, form.dtype)


class Boundary:
    """One end of a boundary: tensors in and out, bytes on the link.

    Args:
        bits: bits of a value on the wire; 32 leaves it unchanged.
        generator: for stochastic rounding of gradients; None rounds to the nearest.

    Raises:
        FloatingPointError: `send` got a tensor that is not finite, and `bits` is below 32.
    """

    def __init__(
        self, link: Link, form: Form, bits: Bits, generator: torch.Generator | None
    ) -> None:
        self.link, self.form, self.bits = link, form, bits
        self.codec = Codec(bits)
        self.sent_bytes = 0
        self._generator = generator

    def begin_epoch(self) -> None:
        """Resets the counters."""
        self.sent_bytes = 0
        self.codec.health = Health()

    def send(self, tensor: Tensor, chunk: int) -> None:
        assert tensor.shape == self.form.shape, (tensor.shape, self.form)
        last = tensor.detach().to(self.form.dtype)
        if last.dim() == 4:
            last = last.permute(0, 2, 3, 1)
        if self.bits == 32:
            message = last.contiguous().view(-1).view(torch.uint8)
        else:
            message = self.codec.encode(
                last, stochastic=self._generator is not None, generator=self._generator
            )
        if self.codec.health.nonfinite_tensors:
            raise FloatingPointError("a tensor between two stages is not finite")
        self.sent_bytes += message.numel()
        self.link.send(message, chunk)

    def receive(self, chunk: int) -> Tensor:
        message, shape = self.link.receive(chunk), self.form.wire_shape
        if self.bits == 32:
            tensor = message.view(self.form.dtype).view(shape)
        else:
            tensor = self.codec.decode(message, shape, self.form.dtype)
        return tensor.permute(0, 3, 1, 2) if tensor.dim() == 4 else tensor
