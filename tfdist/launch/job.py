"""What `tfdist run` was asked to start, and the environment of each worker and server."""

import dataclasses
import os

from tfdist.launch.resources import available_cores, core_quota, gpu_variables, num_gpus, thread_variables
from tfdist.launch.restarts import RestartRules


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
      num_servers: int, parameter servers of the job, all of them on node 0; 0 leaves them to the strategy, which asks for some or,
        where `recovers` is false, starts its own.
      server_command: the arguments of the Python interpreter that make it a server.
      summary: bool, whether to tell at the end what the servers have counted.
      max_workers: int, places for workers on all hosts; the number that is started by default.
      grace_seconds: float, what workers get to end when the job is stopped: a last checkpoint takes time.
      restarts: the `RestartRules`; None where the first worker that is lost ends the job.
    """

    command: tuple[str, ...]
    num_workers: int = 2
    num_nodes: int = 1
    node_rank: int = 0
    address: str | None = None
    variables: dict = dataclasses.field(default_factory=dict)
    num_servers: int = 0
    server_command: tuple[str, ...] = ("-m", "tfdist.parameter_server")
    summary: bool = False
    max_workers: int | None = None
    grace_seconds: float = 3.0
    restarts: RestartRules | None = None

    @property
    def num_initial_workers(self):
        """The number of workers on all hosts that the job starts with."""
        return self.num_workers * self.num_nodes

    @property
    def world_size(self):
        """The number of places for workers on all hosts."""
        return max(self.num_initial_workers, self.max_workers or 0)

    @property
    def local_world_size(self):
        """The number of places for workers on this host."""
        return self.world_size // self.num_nodes

    @property
    def recovers(self):
        """Whether the job goes on without a worker that is lost."""
        return self.restarts is not None and self.world_size > 1

    @property
    def starts_requested_servers(self):
        """Whether the launcher of this host starts the servers that strategies ask for."""
        return self.recovers and not self.num_servers and self.node_rank == 0

    @property
    def num_local_servers(self):
        """The number of servers on this host."""
        return self.num_servers if self.node_rank == 0 else 0

    def rank(self, local_rank):
        """Returns the rank of a worker of this host: those that the job starts with come first, host by host."""
        if local_rank < self.num_workers:
            return self.node_rank * self.num_workers + local_rank
        more = self.local_world_size - self.num_workers
        return self.num_initial_workers + self.node_rank * more + local_rank - self.num_workers

    def environment(self, local_rank, incarnation, store_address, secret, environ):
        """Returns the variables of one worker: what the user set wins over our division of cores and GPUs."""
        defaults = {
            **thread_variables(len(available_cores()), self.num_workers, core_quota()),
            **gpu_variables(local_rank, num_gpus()),
            "PYTHONFAULTHANDLER": "1",
        }
        return {
            **defaults,
            **environ,
            **self._shared(incarnation, store_address, secret, environ),
            "TFDIST_RANK": str(self.rank(local_rank)),
            "TFDIST_LOCAL_RANK": str(local_rank),
        }

    def server_environment(self, index, incarnation, store_address, secret, environ):
        """Returns the variables of one server, which has all cores and no GPU."""
        return {
            "PYTHONFAULTHANDLER": "1",
            **environ,
            **self._shared(incarnation, store_address, secret, environ),
            "TFDIST_SERVER": str(index),
            "TFDIST_NUM_SERVERS": str(max(self.num_servers, index + 1)),
            "CUDA_VISIBLE_DEVICES": "",
        }

    def _shared(self, incarnation, store_address, secret, environ):
        # The secret of a file stays in its file.
        secret_variables = {} if environ.get("TFDIST_SECRET_FILE", "") else {"TFDIST_SECRET": os.fsdecode(secret)}
        return {
            **self.variables,
            **secret_variables,
            **({"TFDIST_NUM_SERVERS": str(self.num_servers)} if self.num_servers else {}),
            **({"TFDIST_SERVERS_ON_REQUEST": "1"} if self.recovers and not self.num_servers else {}),
            "TFDIST_WORLD_SIZE": str(self.world_size),
            "TFDIST_LOCAL_WORLD_SIZE": str(self.local_world_size),
            "TFDIST_INITIAL_WORKERS": str(self.num_initial_workers),
            "TFDIST_INCARNATION": str(incarnation),
            "TFDIST_RECOVER": "1" if self.recovers else "0",
            "TFDIST_MIN_WORKERS": str(self.restarts.min_workers if self.restarts else self.num_initial_workers),
            "TFDIST_STORE": store_address,
        }
