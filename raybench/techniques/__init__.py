"""Training-efficiency techniques, a file each: the way in is `Technique`."""

from raybench.techniques.technique import (
    Apart,
    Batch,
    Load,
    Memory,
    Progress,
    Technique,
)

__all__ = ["Apart", "Batch", "Load", "Memory", "Progress", "Technique"]
