"""Training-efficiency techniques, one file each; start with `Technique`."""

from raybench.techniques.technique import (
    Apart,
    Batch,
    Load,
    Memory,
    Progress,
    Technique,
)

__all__ = ["Apart", "Batch", "Load", "Memory", "Progress", "Technique"]
