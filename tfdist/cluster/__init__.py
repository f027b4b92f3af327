"""Who takes part in a job, who this process is, and how the processes find each other."""

from tfdist.cluster.cluster import Cluster, current, is_chief, local_rank, rank, resolve, world_size

size = world_size  # Horovod's name

__all__ = ["Cluster", "current", "is_chief", "local_rank", "rank", "resolve", "size", "world_size"]
