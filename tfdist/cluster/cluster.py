"""Who takes part in a job, and who this process is."""

import dataclasses
import functools
import os

from tfdist.cluster import variables
from tfdist.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The place of this process among the workers of its job.

    Args:
      rank: int, this worker's number, from 0; rank 0 is the chief.
      world_size: int, the number of workers.
      local_rank: int, this worker's number among those of its host.
      local_world_size: int, the number of workers on its host.
      store_address: "host:port" of the rendezvous store; None for one worker without servers.
      serves_store: bool, whether this process serves the store at that address (else somebody else does).
      bind_host: the address on which this process listens; loopback unless workers run on several hosts.
      secret: bytes that prove membership of the job.
      source: what described the cluster, for messages: "tfdist run", "TF_CONFIG", ...
      timeout: float seconds that a wait for other workers may last, from TFDIST_TIMEOUT; None leaves it to the group.
      num_servers: int, the parameter servers that something else starts; 0 leaves it to the strategy to start any.

    Raises:
      ConfigurationError: the numbers contradict each other.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    store_address: str | None = None
    serves_store: bool = False
    bind_host: str = "127.0.0.1"
    secret: bytes = dataclasses.field(default=b"", repr=False)
    source: str = "one worker"
    timeout: float | None = None
    num_servers: int = 0

    def __post_init__(self):
        sizes = f"local_world_size={self.local_world_size}, world_size={self.world_size}"
        places = f"rank={self.rank}, local_rank={self.local_rank}, {sizes}"
        if not (0 <= self.rank < self.world_size and 0 <= self.local_rank < self.local_world_size <= self.world_size):
            raise ConfigurationError(
                "A cluster is expected to have 0 <= rank < world_size, 0 <= local_rank < local_world_size and "
                f"local_world_size <= world_size. Received: {places}, from {self.source}. Correct its description."
            )
        if (self.world_size > 1 or self.num_servers) and not (self.store_address and self.secret):
            raise ConfigurationError(
                "A cluster of several workers, or with servers, is expected to have a store_address and a secret. "
                f"Received: store_address={self.store_address!r}, "
                f"secret={'(hidden)' if self.secret else self.secret!r}, from {self.source}. Give both."
            )


def resolve(environ=os.environ):
    """Finds this process's place from the variables of whatever started it.

    The first that applies: `tfdist run`, `TF_CONFIG`, Slurm (a step of srun), Open MPI or another MPI, torchrun;
    otherwise one worker.

    Args:
      environ: a mapping of environment variables.

    Returns:
      A `Cluster`.

    Raises:
      ConfigurationError: variables contradict each other (one line that names them), or workers on several hosts
        have no secret. No connection is opened before.
    """
    from tfdist.cluster.environments import ENVIRONMENTS

    timeout = variables.timeout(environ)
    for environment in ENVIRONMENTS:
        cluster = environment(environ)
        if cluster is not None:
            return dataclasses.replace(cluster, timeout=timeout)
    return Cluster(timeout=timeout)


@functools.cache
def current():
    """Returns the `Cluster` of this process, resolved at the first call."""
    return resolve()


def rank():
    """Returns this worker's rank, an int from 0."""
    return current().rank


def world_size():
    """Returns the number of workers of this job, an int."""
    return current().world_size


def local_rank():
    """Returns this worker's rank among the workers of its host, an int from 0."""
    return current().local_rank


_chief = {"rank": lambda: 0}


def chief_is(rank):
    """Says how to find the chief where that may change: `rank()` returns it."""
    _chief["rank"] = rank


def is_chief():
    """Returns whether this worker is the one that reports and saves: rank 0, or its successor where that was lost."""
    return current().rank == _chief["rank"]()
