"""Which rows of the data a worker sees, and in which order."""

from tfdist.data.sharding import distribute, keep_in_step
from tfdist.data.permutation import batches

__all__ = ["batches", "distribute", "keep_in_step"]
