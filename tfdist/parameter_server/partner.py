"""How a server gets the state of a store from the one that keeps its other copy."""

import json
import secrets
import time

from tfdist.cluster.frames import FrameError, encode, receive_frame, send_all
from tfdist.errors import TransportError
from tfdist.parameter_server.dial import dial

_SECONDS = 10.0
CHUNK_BYTES = 1 << 19


def fetch(address, secret, name):
    """Returns the blocks of a store on another server.

    Args:
      address: "host:port" of that server.
      secret: bytes, the job's secret.
      name: str, the store's name there.

    Raises:
      TransportError, RendezvousError, AuthenticationError: it does not answer, or has no such store.
    """
    identity = ["control", 0, secrets.randbits(62)]
    with dial(address, "the partner", identity, secret, timeout=_SECONDS) as connection:
        sizes = json.loads(_ask(connection, {"op": "state", "store": name})[1])
        data = bytearray()
        while len(data) < sum(sizes):
            data += _ask(connection, {"op": "state bytes", "store": name, "begin": len(data)})[1]
    blocks, begin = [], 0
    for size in sizes:
        blocks.append(bytes(data[begin : begin + size]))
        begin += size
    return blocks


def _ask(connection, header):
    try:
        send_all(connection, encode(header), time.monotonic() + _SECONDS)
        answer, value = receive_frame(connection, time.monotonic() + _SECONDS)
    except (OSError, FrameError) as error:
        raise TransportError(f"A server was expected to answer {json.dumps(header)}. Received: {error}.") from error
    if "error" in answer:
        raise TransportError(answer["text"])
    return answer, value
