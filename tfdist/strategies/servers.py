"""How a strategy reaches its parameter servers: it finds those of the job, or the chief starts some."""

import json
import os
import secrets as random_secrets

from tfdist import cluster, errors
from tfdist.cluster import variables
from tfdist.cluster.secret import given_secret
from tfdist.cluster.server import ADDRESS_KEY
from tfdist.cluster.store import StoreClient
from tfdist.comm.group import DEFAULT_TIMEOUT_SECONDS
from tfdist.parameter_server import spawn
from tfdist.parameter_server.client import Client

_FIND_SECONDS = 60.0


def connect(group, num_servers):
    """Connects this worker with all servers of the job.

    Args:
      group: the `Group` of the workers, or None for one.
      num_servers: int or None. Servers that `tfdist run --servers` or TF_CONFIG provides are used, and must be so many; where
        there are none the chief starts `num_servers`, or one, on its host.

    Returns:
      `(client, stop)`: a `Client`, and a function that ends the servers started here.

    Raises:
      ConfigurationError: the job has another number of servers.
      RendezvousError: a server does not answer.
    """
    place = cluster.current()
    timeout = group.timeout if group else place.timeout or DEFAULT_TIMEOUT_SECONDS
    given = place.num_servers
    if given and num_servers not in (None, given):
        raise errors.ConfigurationError(
            f"num_servers is expected to be that of the job. Received: num_servers={num_servers}, and {given} from "
            f"{place.source}. Leave it out, or start as many."
        )
    rank = group.rank if group else 0
    stop = _nothing
    if given and place.store_address:
        addresses, secret = _find(place, given), place.secret
    else:
        secret = _as_text(place.secret or given_secret(os.environ) or random_secrets.token_bytes(32))
        addresses = None
        if rank == 0:
            world_size = group.world_size if group else 1
            host = place.bind_host
            addresses, stop = spawn.start(
                num_servers or 1, world_size=world_size, secret=secret, host=host, timeout=timeout
            )
        if group:
            addresses = json.loads(group.all_gather_bytes(json.dumps(addresses).encode())[0])
    try:
        return Client(addresses, rank, secret, timeout=timeout, transport=variables.transport(os.environ)), stop
    except BaseException:
        stop()
        raise


def _as_text(secret):
    """A secret goes to a child as a variable: bytes that are none of UTF-8 are spelled out."""
    try:
        secret.decode()
        return secret
    except UnicodeDecodeError:
        return secret.hex().encode()


def _find(place, num_servers):
    try:
        with StoreClient(place.store_address, place.secret) as store:
            keys = [f"{ADDRESS_KEY}{index}" for index in range(num_servers)]
            return [store.get(key, timeout=_FIND_SECONDS).decode() for key in keys]
    except TimeoutError as error:
        raise errors.RendezvousError(
            f"{num_servers} parameter servers were expected to tell rank {place.rank} where they listen within "
            f"{_FIND_SECONDS:g} s. Received: not all. {error}"
        ) from error


def _nothing():
    pass
