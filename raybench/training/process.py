"""Settings of a training process: threads, and how the C library treats freed memory."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h

KERNELS = 256
"""Kernels that oneDNN caches. MobileNetV2's training step uses 181 of them, ResNet-44's 37, but
experts get new numbers of rows in every step: with oneDNN's own 1,024 the peak of a ViT with 64
experts was 10.2 GB after six steps and growing, with 256 it is 9.7 GB. Kernels lie between
activations in the heap and fragment it."""


def prepare(threads: int) -> None:
    """Sets torch's threads and the number of cached kernels, and keeps freed memory in the process.

    Two threads on one core are up to 10 times slower than one. By default glibc returns large
    blocks to the system when they are freed. A training step frees and allocates the same blocks,
    and each new page costs a fault. So large blocks are not mapped separately, and the heap's end
    is returned only above 2 GB. This reduces a step of a ViT with 64 experts in one of three
    blocks to 0.90 of its time, without experts to 0.94 (one run of four steps each; with huge pages
    instead: 1.18 and 0.98, because the kernel clears them). A MALLOC_ variable set by the user has
    priority.
    """
    torch.set_num_threads(threads)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))  # read at its first use
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not chosen:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
