"""How a strategy reaches its parameter servers: it finds those of the job, or the chief starts some."""

import json
import os
import secrets as random_secrets

from tfdist import cluster, errors
from tfdist.cluster import variables
from tfdist.cluster.secret import given_secret
from tfdist.cluster.server import ADDRESS_KEY, REQUEST_KEY
from tfdist.cluster.store import StoreClient
from tfdist.comm.group import DEFAULT_TIMEOUT_SECONDS
from tfdist.parameter_server import spawn
from tfdist.parameter_server.client import Client, check_replicas
from tfdist.parameter_server.recovery import Recovery

_FIND_SECONDS = 60.0
_RETURN_SECONDS = 60.0  # in which a server that is lost has to come back


def connect(group, num_servers, *, replicas=1):
    """Connects this worker with all servers of the job.

    Args:
      group: the `Group` of the workers, or None for one.
      num_servers: int or None. Servers that `tfdist run --servers` or TF_CONFIG provides are used, and must be so many; where
        there are none the launcher starts `num_servers`, or one, if it is one that goes on without a lost worker; else the
        chief does, on its host, and starts those again that are killed.
      replicas: 1 or 2, how many servers keep each part.

    Returns:
      `(client, stop)`: a `Client`, and a function that ends the servers started here.

    Raises:
      ConfigurationError: the job has another number of servers, or too few for replicas.
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
    check_replicas(replicas, given or num_servers or 1)
    rank = group.rank if group else 0
    stop, find = _nothing, None
    recovers = variables.recover(os.environ, default=not given)
    if not given and group and variables.starts_servers_on_request(os.environ):
        given = _request(place, num_servers or 1)
    if given and place.store_address:
        addresses, secret = _find(place, range(given)), place.secret

        def find(server):
            return _find(place, [server])[0]

    else:
        secret = _as_text(place.secret or given_secret(os.environ) or random_secrets.token_bytes(32))
        addresses = None
        if rank == 0:
            world_size = group.world_size if group else 1
            host = place.bind_host
            addresses, stop = spawn.start(
                num_servers or 1, world_size=world_size, secret=secret, host=host, timeout=timeout, recovers=recovers
            )
        if group:
            addresses = json.loads(group.all_gather_bytes(json.dumps(addresses).encode())[0])
    try:
        recovery = Recovery(seconds=min(timeout, _RETURN_SECONDS), find=find) if recovers else False
        options = {"timeout": timeout, "transport": variables.transport(os.environ), "recovery": recovery}
        return Client(addresses, rank, secret, replicas=replicas, **options), stop
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


def _request(place, num_servers):
    """Asks the launcher for servers, which outlive every worker; all workers do, as any of them may be lost."""
    with StoreClient(place.store_address, place.secret) as store:
        store.set(f"{REQUEST_KEY}{num_servers}", b"")
    return num_servers


def _find(place, indices):
    try:
        with StoreClient(place.store_address, place.secret) as store:
            return [store.get(f"{ADDRESS_KEY}{index}", timeout=_FIND_SECONDS).decode() for index in indices]
    except TimeoutError as error:
        raise errors.RendezvousError(
            f"{len(indices)} parameter servers were expected to tell rank {place.rank} where they listen within "
            f"{_FIND_SECONDS:g} s. Received: not all. {error}"
        ) from error


def _nothing():
    pass
