"""Settings of a process that trains: threads, and what the C library does with freed memory."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h

KERNELS = 256
"""That oneDNN keeps. MobileNetV2's training step uses 181 of them, ResNet-44's 37, but experts
meet ever new numbers of rows: with oneDNN's own 1,024 the peak of a ViT with 64 experts was 10.2 GB
after six steps and growing, with 256 it is 9.7 GB. Kernels lie between the activations in the heap,
and what they part is not filled again."""


def prepare(threads: int) -> None:
    """Sets torch's threads and the number of kept kernels, and keeps freed memory in the process.

    Two threads on one core are up to 10 times slower than one. glibc by default gives large
    blocks back to the system when they are freed; a training step frees and asks for the same
    ones, and each page that is touched anew costs a fault. So no block is mapped for itself, and
    the heap's end is given back only from 2 GB on. A step of a ViT with 64 experts in one of three
    blocks takes 0.90 of the time so, without experts 0.94 (one run of four steps each; huge pages
    instead: 1.18 and 0.98, as the kernel clears them). A MALLOC_ variable that the user has set
    wins.
    """
    torch.set_num_threads(threads)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))  # read at its first use
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not chosen:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
