"""Checkpoints of a training job: written atomically, verified on reading, independent of workers, servers and strategy.

The callback `tfdist.callbacks.DistributedCheckpoint` writes them and resumes from them. No TensorFlow in here.
"""

from tfdist.checkpoint.folder import latest
from tfdist.checkpoint.loading import Checkpoint, load, verify
from tfdist.checkpoint.writing import write

__all__ = ["Checkpoint", "latest", "load", "verify", "write"]
