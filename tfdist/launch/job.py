"""What `tfdist run` was asked to start, and the environment of each worker."""

import dataclasses
import os

from tfdist.launch.resources import available_cores, core_quota, gpu_variables, num_gpus, thread_variables


@dataclasses.dataclass(frozen=True)
class Job:
    """A command and the number of times to start it.

    Args:
      command: the arguments of the Python interpreter: a script or `-m module`, and what follows.
      num_workers: int, workers on this host.
      num_nodes: int, hosts that run `tfdist run`, each with as many workers.
      node_rank: int, this host's number among them.
      address: "host:port" of the store on node 0; None for one host.
      variables: dict of further environment variables.
    """

    command: tuple[str, ...]
    num_workers: int = 2
    num_nodes: int = 1
    node_rank: int = 0
    address: str | None = None
    variables: dict = dataclasses.field(default_factory=dict)

    @property
    def world_size(self):
        """The number of workers on all hosts."""
        return self.num_workers * self.num_nodes

    def rank(self, local_rank):
        """Returns the rank of a worker of this host."""
        return self.node_rank * self.num_workers + local_rank

    def environment(self, local_rank, store_address, secret, environ):
        """Returns the variables of one worker: what the user set wins over our division of cores and GPUs."""
        defaults = {
            **thread_variables(len(available_cores()), self.num_workers, core_quota()),
            **gpu_variables(local_rank, num_gpus()),
            "PYTHONFAULTHANDLER": "1",
        }
        # The secret of a file stays in its file.
        secret_variables = {} if environ.get("TFDIST_SECRET_FILE", "") else {"TFDIST_SECRET": os.fsdecode(secret)}
        return {
            **defaults,
            **environ,
            **self.variables,
            **secret_variables,
            "TFDIST_RANK": str(self.rank(local_rank)),
            "TFDIST_WORLD_SIZE": str(self.world_size),
            "TFDIST_LOCAL_RANK": str(local_rank),
            "TFDIST_LOCAL_WORLD_SIZE": str(self.num_workers),
            "TFDIST_STORE": store_address,
        }
