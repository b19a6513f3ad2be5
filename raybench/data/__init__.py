"""Images as arrays, and batches cut from them: the way in is `load`."""

from raybench.data.images import (
    Images,
    Split,
    batches,
    cache_folder,
    evaluation_batches,
    load,
)

__all__ = ["Images", "Split", "batches", "cache_folder", "evaluation_batches", "load"]
