"""Numbers of a layer's state that the host needs in every step, without waiting for a GPU.

Bits and zero points are buffers, so that they are saved, copied and loaded with the model. A step
reads them to choose its kernels, and each read would wait until the GPU has caught up.
"""

from __future__ import annotations

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_READ: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Buffer -> the version at which it was read, and its value then."""


def number(buffer: Tensor) -> int:
    """The value of a buffer with one whole number.

    On a GPU it is read again only after a change: every in-place operation raises the version.
    """
    if not buffer.is_cuda:
        return int(buffer)
    version = buffer._version
    seen = _READ.get(buffer)
    if seen is None or seen[0] != version:
        seen = _READ[buffer] = (version, int(read(buffer)))
    return int(seen[1])


def read(value: Tensor) -> float:
    """The value of a tensor with one element. It waits for a GPU, so no step may call it."""
    return float(value)
