"""Images as arrays, and batches cut from them; start with `load`."""

from raybench.data.images import Images, batches, evaluation_batches, load, pixel_batches
from raybench.data.inputs import Inputs
from raybench.data.split import Split

__all__ = [
    "Images",
    "Inputs",
    "Split",
    "batches",
    "evaluation_batches",
    "load",
    "pixel_batches",
]
