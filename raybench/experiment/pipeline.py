"""Pipeline: how a model is cut into stages, and how they exchange tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Pipeline"]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A model is cut into stages, and a batch into chunks that pass through them in turn."""

    stages: int = 1
    """Number of parts of the model, each in its own process with one CPU or one GPU."""
    chunks: int = 1
    """Number of equal parts of a batch; with several the stages compute at the same time."""
    schedule: Literal["gpipe", "1f1b", "zero_bubble"] = "gpipe"
    """Order of the forward and backward passes; all give the same gradients."""
    cuts: str = ""
    """Numbers of the blocks before which the model is cut, as in "3,7". Empty: blocks are timed and
    cut so that the slowest stage is as fast as possible."""
    batch_norm: Literal["corrected", "deferred", "per_chunk"] = "corrected"
    """How running statistics are updated; every chunk is normalized by its own statistics.
    corrected: by every chunk with a smaller momentum, so that a batch counts as one update;
    deferred: once per batch, from all chunks; per_chunk: by every chunk, with the full momentum."""
    bits: Literal[32, 16, 8, 4, 2] = 32
    """Bits per value sent between stages. 32: unchanged; 16: bf16; fewer: integers scaled per
    tile."""
    transport: Literal["gloo", "shm", "nccl", "object_store"] = "gloo"
    """gloo: TCP; shm: shared memory, for stages on one node; nccl: between GPUs; object_store:
    Ray's object store, the baseline."""
    link_mb_s: float = 0.0
    """Simulated link speed in megabytes per second and direction; 0: no limit."""

    def __post_init__(self) -> None:
        for name in ("stages", "chunks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if not self.link_mb_s >= 0:
            raise ValueError(f"link_mb_s is {self.link_mb_s}: it must not be negative")
        if self.cuts:
            self._check_cuts()

    @property
    def on(self) -> bool:
        """Whether there are several stages or several chunks."""
        return self.stages > 1 or self.chunks > 1

    def check_batch(self, batch: int) -> None:
        """Raises ValueError if the chunks would have different sizes; it suggests numbers."""
        if batch % self.chunks:
            divisors = [n for n in range(1, batch + 1) if batch % n == 0]
            near = sorted(sorted(divisors, key=lambda n: abs(n - self.chunks))[:4])
            raise ValueError(
                f"pipeline.chunks {self.chunks} does not divide recipe.batch {batch}: use "
                f"{', '.join(map(str, near[:-1]))} or {near[-1]}"
                if len(near) > 1
                else f"pipeline.chunks is {self.chunks}, but recipe.batch is 1: use 1"
            )

    def _check_cuts(self) -> None:
        try:
            positions = [int(part) for part in self.cuts.split(",")]
        except ValueError as error:
            raise ValueError(
                f"cuts is {self.cuts!r}: numbers of blocks with commas between them, as in '3,7'"
            ) from error
        if len(positions) != self.stages - 1:
            raise ValueError(
                f"cuts {self.cuts!r} make {len(positions) + 1} stages, but stages is "
                f"{self.stages}: give {self.stages - 1} position(s), or none"
            )
        if positions != sorted(set(positions)) or positions[0] < 1:
            raise ValueError(f"cuts is {self.cuts!r}: positions from 1 on, in ascending order")
