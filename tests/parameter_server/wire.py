"""native/parameter_server/protocol.h written down a second time, to say on the wire what no client says."""

import contextlib
import socket
import struct

from tests.parameter_server.jobs import SECONDS
from tfdist.cluster.address import parse_address
from tfdist.cluster.handshake import authenticate

EXCHANGE, READ, WRITE, PULL_ROWS = 1, 2, 3, 4
DENSE, ROWS = 0, 1
PUSH, PULL = 1, 2
_REQUEST = struct.Struct("<IHHIIIiQQqddQQQ")
_REPLY = struct.Struct("<IiIIqqdQQQ")
_MASK = (1 << 64) - 1


def entry(shard, kind=DENSE, flags=PUSH | PULL, num_rows=0):
    return struct.pack("<IHHq", shard, kind, flags, num_rows)


def request(kind, entries, *, magic=0x74667071, store=0, flags=0, num_entries=None, slot=0, generation=0, sequence=0,
            base=0, learning_rate=0.0, weight=1.0, row_bytes=0, dense_bytes=0, check=None):  # fmt: skip
    """Returns the header and the entries of a request; what is not given makes sense."""
    count = len(entries) if num_entries is None else num_entries
    fields = (
        magic,
        kind,
        1,
        store,
        flags,
        count,
        slot,
        generation,
        sequence,
        base,
        learning_rate,
        weight,
        row_bytes,
        dense_bytes,
    )
    words = struct.unpack("<10Q", _REQUEST.pack(*fields, 0)[:80])
    total = 0
    for word in words:
        total = (((total ^ word) * 0x9E3779B97F4A7C15) + (total >> 29)) & _MASK
    return _REQUEST.pack(*fields, total if check is None else check) + b"".join(entries)


def reply(peer):
    """Reads the header of an answer; returns its code and text."""
    fields = _REPLY.unpack(peer.recv(_REPLY.size, socket.MSG_WAITALL))
    assert fields[0] == 0x74667072
    return fields[1], peer.recv(fields[2], socket.MSG_WAITALL).decode() if fields[2] else ""


@contextlib.contextmanager
def connect(address, secret, identity):
    """Yields a connection that has passed the handshake."""
    with socket.create_connection(parse_address(address), timeout=SECONDS) as peer:
        authenticate(peer, secret, initiator=True, identity=identity)
        yield peer


def is_closed(peer):
    """Whether the other side closes the connection; reads what it has sent before."""
    peer.settimeout(SECONDS)
    with contextlib.suppress(ConnectionError):
        while peer.recv(4096):
            pass
    return True
