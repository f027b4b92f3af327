"""A connection to a parameter server that both sides have authenticated."""

import json
import socket

from tfdist import errors
from tfdist.cluster.address import parse_address
from tfdist.cluster.handshake import secure


def dial(address, server, identity, secret, timeout=30.0):
    """Returns a connected socket.

    Args:
      address: "host:port".
      server: its index, for messages.
      identity: list of JSON: "control" or "data", the worker's rank, the number of its client.
      secret: bytes, the job's secret.
      timeout: float seconds.

    Raises:
      RendezvousError: nobody answers.
      AuthenticationError: it does not know the secret.
    """
    host, port = parse_address(address)
    try:
        connection = socket.create_connection((host, port), timeout=timeout)
    except OSError as error:
        raise errors.RendezvousError(
            f"Parameter server {server} was expected to answer at {address} to rank {identity[1]}. Received: {error}. "
            "See whether it runs (`tfdist run --servers`, `python -m tfdist.parameter_server`), and whether a firewall is between."
        ) from error
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        connection.close()
        raise
    seconds = min(timeout, 10.0)
    return secure(connection, secret, initiator=True, identity=json.dumps(identity).encode(), timeout=seconds)[0]
