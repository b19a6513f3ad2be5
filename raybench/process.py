"""Settings of a process that trains: threads, and what the C library does with freed memory."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def prepare(threads: int) -> None:
    """Sets torch's threads, and keeps freed memory in the process.

    Two threads on one core are up to 10 times slower than one. glibc by default gives large
    blocks back to the system when they are freed; a training step frees and asks for the same
    ones, and each page that is touched anew costs a fault. So no block is mapped for itself, and
    the heap's end is given back only from 2 GB on. A step of a ViT with 64 experts in one of three
    blocks takes 0.90 of the time so, without experts 0.94 (one run of four steps each; huge pages
    instead: 1.18 and 0.98, as the kernel clears them). A MALLOC_ variable that the user has set
    wins.
    """
    torch.set_num_threads(threads)
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not chosen:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
