"""The settings of a process that trains."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
import resource

from raybench.training import process

process.prepare(threads=1)
import torch

assert torch.get_num_threads() == 1
faults = []
for _ in range(16):  # the heap grows for the first few, until what was freed is enough
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(24 << 20)  # 96 MB, freed at once
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.workers
def test_large_tensors_reuse_the_memory_of_freed_ones():
    environment = {n: v for n, v in os.environ.items() if not n.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100  # of 24,576 pages
