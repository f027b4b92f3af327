"""Connects every rank with every other one: addresses through the store, then authenticated sockets for every pair.

Ranks of one host also open each other's shared memory. They share it where each of them could open that of every
other; what each could is told to all, so that all know of all who shares with whom.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import socket
import time

from tfdist.cluster.doorman import Doorman
from tfdist.cluster.handshake import secure
from tfdist.cluster.host import is_loopback
from tfdist.cluster.store import StoreClient
from tfdist.collectives import Topology
from tfdist.comm import shared_memory
from tfdist.errors import ConfigurationError, RendezvousError

_SOCKETS_AT_MOST = 16
_BACKLOG = 1024  # a crowd of strangers does not keep the ranks out
_HANDSHAKE_SECONDS = 10.0
_CHECK_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Mesh:
    """What a rank is connected by.

    Args:
      sockets: by rank, a list of connected, authenticated sockets, equally many of each; None at this rank.
      hosts: tuple of tuples of ranks, those of each host.
      segments: by rank, a descriptor of shared memory, -1 where none is shared with this rank.
      topology: the `Topology`, equal on all ranks: shared where the ranks of every host with several share memory.
    """

    sockets: list
    segments: list
    topology: Topology


def connect(cluster, *, timeout, generation=0, transport="auto", sockets_per_peer=1, check=None):
    """Forms the mesh of a cluster.

    Ranks publish where they listen; a rank connects to the lower ones and accepts the higher ones.

    Args:
      cluster: a `tfdist.cluster.Cluster` of at least two ranks, whose store is being served.
      timeout: float seconds for the whole.
      generation: int, of the membership.
      transport: "auto", "shm" (shared memory on every host, or an error) or "tcp" (none).
      sockets_per_peer: int from 1 to 16; rank 0's holds for all.
      check: called now and then while this rank waits; may raise where waiting is in vain.

    Returns:
      A `Mesh`; its segments are the caller's to close.

    Raises:
      RendezvousError: somebody did not come in time; says who.
      AuthenticationError: this rank and the store do not share the secret.
      ConfigurationError: transport is "shm", and memory cannot be shared.
    """
    deadline = time.monotonic() + timeout
    segments = shared_memory.Segments(cluster.rank, cluster.world_size, wanted=transport != "tcp")
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(segments.close)
        with _listen(cluster.bind_host, max(_BACKLOG, cluster.world_size * _SOCKETS_AT_MOST)) as listener:
            with StoreClient(cluster.store_address, cluster.secret, timeout=timeout) as store:
                exchange = functools.partial(_exchange, store, cluster, generation, deadline, timeout, check)
                address = [cluster.bind_host, listener.getsockname()[1]]
                entries = exchange("", {"address": address, "memory": segments.address(), "sockets": sockets_per_peer})
                count = entries[0]["sockets"]
                sockets = [None if peer == cluster.rank else [None] * count for peer in range(cluster.world_size)]
                for peer, index in itertools.product(range(cluster.rank), range(count)):
                    sockets[peer][index] = _dial(cluster, generation, peer, index, entries[peer]["address"], deadline)
                _accept_higher(listener, cluster, generation, sockets, deadline, timeout, store, check)
                for peer in range(cluster.world_size):
                    segments.open(peer, entries[peer]["memory"])
                # Nobody takes the store down, or the job for formed, before everyone has everyone.
                opened = exchange("/formed", segments.opened())
        on_failure.pop_all()
    segments.keep_common(opened)
    topology = Topology(segments.hosts(), shared=segments.shared_everywhere(opened))
    if transport == "shm" and not topology.shared:
        raise ConfigurationError(
            "the ranks of each host are expected to share memory. Received: TFDIST_TRANSPORT=shm, and ranks that could "
            f"open each other's: {opened}. Run them as one user in one container, or set TFDIST_TRANSPORT=auto."
        )
    return Mesh(sockets, segments.descriptors, topology)


def _key(generation, rank):
    return f"mesh/{generation}/{rank}"


def _listen(host, backlog):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((host, 0))
    listener.listen(backlog)
    return _tuned(listener, host)


def _left(deadline):
    return max(deadline - time.monotonic(), 0.001)


def _await(store, key, cluster, generation, deadline, timeout, check):
    while True:
        left = _left(deadline)
        try:
            return store.get(key, timeout=left if check is None else min(left, _CHECK_SECONDS))
        except TimeoutError as error:
            if time.monotonic() >= deadline:
                raise _nobody_came(store, cluster, generation, timeout) from error
        if check is not None:
            check()


def _exchange(store, cluster, generation, deadline, timeout, check, phase, value):
    """Returns what all ranks give, by rank. Rank 0 collects it: the store answers 2 P requests, not P^2."""
    own, everyone = f"{_key(generation, cluster.rank)}{phase}", f"mesh of all/{generation}{phase}"
    store.set(own, json.dumps(value).encode())
    if cluster.rank > 0:
        return json.loads(_await(store, everyone, cluster, generation, deadline, timeout, check))
    keys = [f"{_key(generation, peer)}{phase}" for peer in range(cluster.world_size)]
    values = [json.loads(_await(store, key, cluster, generation, deadline, timeout, check)) for key in keys]
    store.set(everyone, json.dumps(values).encode())
    return values


def _nobody_came(store, cluster, generation, timeout):
    prefix = f"mesh/{generation}/"
    here = {int(key[len(prefix) :].split("/")[0]) for key in store.keys(prefix)}
    missing = sorted(set(range(cluster.world_size)) - here)
    text = (
        f"Missing: rank {', '.join(map(str, missing))}"
        if missing
        else "Everyone has come, but not everyone could connect"
    )
    count, address = store.rejected()
    if count:
        text += (
            f". {count} connections were refused because they did not know the job's secret, the last from {address}"
        )
    return RendezvousError(
        f"The group of {cluster.world_size} ranks did not form: rank {cluster.rank} waited {timeout:g} s of timeout "
        f"{timeout:g} s at the store {cluster.store_address}. {text}. Start the missing ranks, or see their output for why they stopped."
    )


def _dial(cluster, generation, peer, index, address, deadline):
    try:
        sock = socket.create_connection(address, timeout=_left(deadline))
        identity = json.dumps([generation, cluster.rank, peer, index]).encode()
        seconds = min(_left(deadline), _HANDSHAKE_SECONDS)
        sock, _ = secure(_tuned(sock, address[0]), cluster.secret, initiator=True, identity=identity, timeout=seconds)
    except OSError as error:
        raise RendezvousError(
            f"rank {cluster.rank} could not connect to rank {peer} at {address[0]}:{address[1]}: {error}. "
            "Check that the hosts reach each other (firewall, TFDIST_ADDRESS)."
        ) from error
    return sock


def _accept_higher(listener, cluster, generation, sockets, deadline, timeout, store, check):
    """Accepts until every higher rank is here; whoever fails the handshake is dropped and does no harm."""
    with Doorman(listener, cluster.secret) as doorman:
        while any(None in sockets[peer] for peer in range(cluster.rank + 1, cluster.world_size)):
            try:
                sock, identity = doorman.next(
                    _left(deadline) if check is None else min(_left(deadline), _CHECK_SECONDS)
                )
            except TimeoutError as error:
                if time.monotonic() >= deadline:
                    raise _nobody_came(store, cluster, generation, timeout) from error
                if check is not None:
                    check()
                continue
            theirs, peer, addressed, index = _understood(identity)
            if (
                theirs == generation
                and addressed == cluster.rank
                and cluster.rank < peer < cluster.world_size
                and 0 <= index < len(sockets[peer])
                and sockets[peer][index] is None
            ):
                sockets[peer][index] = sock
            else:
                sock.close()


def _understood(identity):
    """Returns the four numbers that a rank says of its connection; such that fit nowhere where they are none."""
    try:
        said = json.loads(identity)
    except (ValueError, RecursionError):
        said = None
    is_sound = isinstance(said, list) and len(said) == 4 and all(isinstance(number, int) for number in said)
    return said if is_sound else (-1, -1, -1, -1)


def _tuned(sock, host):
    """Sets the options of a connection with `host`, or of a listener there, whose connections have them too."""
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_CONGESTION") and is_loopback(host):
        # Pacing for a bottleneck that loopback does not have halves its throughput (BBR); reno is always available.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    return sock
