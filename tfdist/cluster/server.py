"""Which parameter server this process is, where it was started as one."""

import dataclasses
import os

from tfdist.cluster import variables
from tfdist.errors import ConfigurationError

# Keys of the rendezvous store, each followed by a server's index: where it listens, and what it has counted when it ends.
ADDRESS_KEY = "parameter_server/"
SUMMARY_KEY = "parameter_server/summary/"
REQUEST_KEY = "launch/servers/"  # + how many servers a strategy asks the launcher for
MOST_SERVERS = 255


@dataclasses.dataclass(frozen=True)
class ServerPlace:
    """The place of this process among the parameter servers of its job.

    Args:
      index: int, this server's number, from 0.
      num_servers: int.
      world_size: int, the number of workers.
      store_address: "host:port" of the rendezvous store, which somebody else serves.
      bind_host: the address on which this process listens; loopback unless the job runs on several hosts.
      secret: bytes that prove membership of the job.
      port: int, the port that the cluster's description gives this server; 0 for a free one.
      source: what described the cluster, for messages.
      timeout: float seconds, from TFDIST_TIMEOUT; None leaves it to the server.
    """

    index: int
    num_servers: int
    world_size: int
    store_address: str
    bind_host: str
    secret: bytes = dataclasses.field(repr=False)
    port: int = 0
    source: str = "tfdist run"
    timeout: float | None = None


def resolve_server(environ=os.environ):
    """Finds this server's place from the variables of whatever started it: `tfdist run` or `TF_CONFIG`.

    Args:
      environ: a mapping of environment variables.

    Returns:
      A `ServerPlace`.

    Raises:
      ConfigurationError: they describe no server, or contradict each other, or a job on several hosts has no secret. No
        connection is opened before.
    """
    from tfdist.cluster.environments import SERVER_ENVIRONMENTS

    timeout = variables.timeout(environ)
    for environment in SERVER_ENVIRONMENTS:
        place = environment(environ)
        if place is not None:
            return dataclasses.replace(place, timeout=timeout)
    raise ConfigurationError(
        "A parameter server is expected to be started by `tfdist run --servers K`, by a strategy, or as a task of type "
        '"ps" in TF_CONFIG. Received: neither TFDIST_SERVER nor TF_CONFIG. Start it in one of these ways.'
    )
