"""Keras callbacks for training on several workers."""

from tfdist.callbacks.average_metrics import AverageMetrics
from tfdist.callbacks.broadcast_initial_state import BroadcastInitialState
from tfdist.callbacks.distributed_checkpoint import DistributedCheckpoint
from tfdist.callbacks.learning_rate_warmup import LearningRateWarmup
from tfdist.callbacks.staleness_monitor import StalenessMonitor

__all__ = [
    "AverageMetrics",
    "BroadcastInitialState",
    "DistributedCheckpoint",
    "LearningRateWarmup",
    "StalenessMonitor",
]
