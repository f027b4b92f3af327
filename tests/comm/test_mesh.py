"""Forming a group over real sockets: everyone comes, somebody is missing, a stranger knocks."""

import os
import socket
import threading
import time

import numpy as np
import pytest

from tfdist.cluster import Cluster, variables
from tfdist.cluster.address import parse_address
from tfdist.cluster.store import StoreServer
from tfdist.collectives import ALL_REDUCE, Topology
from tfdist.comm import local, mesh, shared_memory
from tfdist.comm.group import Group
from tfdist.errors import AuthenticationError, RendezvousError

SECRET = b"0123456789abcdef0123456789abcdef"


def cluster(rank, world_size, server, secret=SECRET):
    return Cluster(
        rank=rank,
        world_size=world_size,
        local_rank=rank,
        local_world_size=world_size,
        store_address=server.address,
        serves_store=False,
        bind_host="127.0.0.1",
        secret=secret,
        source="test",
    )


def form(world_size, server, *, timeout=10.0, present=None, secrets=None, generations=None, num_sockets=None):
    """Connects on a thread per present rank; returns by rank a Group or the exception."""
    outcome = {}

    def body(rank):
        secret = (secrets or {}).get(rank, SECRET)
        try:
            formed = mesh.connect(
                cluster(rank, world_size, server, secret),
                timeout=timeout,
                generation=(generations or {}).get(rank, 0),
                transport=variables.transport(os.environ),
                sockets_per_peer=(num_sockets or {}).get(rank, 1),
            )
            if num_sockets:
                assert all(peer is None or len(peer) == num_sockets[0] for peer in formed.sockets)
            settings = dict(segments=formed.segments, topology=formed.topology)
            outcome[rank] = Group(rank, world_size, formed.sockets, timeout=10, **settings)
            shared_memory.close_all(formed.segments)
        except Exception as error:
            outcome[rank] = error

    threads = [threading.Thread(target=body, args=(rank,)) for rank in (present or range(world_size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    return outcome


def reduce_everywhere(groups):
    results = {}
    threads = [
        threading.Thread(target=lambda g=g: results.update({g.rank: g.all_reduce(np.full(100_000, g.rank + 1.0))}))
        for g in groups
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for group in groups:
        group.close()
    return results


@pytest.fixture
def server():
    with StoreServer(secret=SECRET) as store:
        yield store


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_everyone_meets(server, world_size):
    groups = form(world_size, server)
    results = reduce_everywhere(list(groups.values()))
    for rank in range(world_size):
        assert (results[rank] == world_size * (world_size + 1) / 2).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_rank_0_says_how_many_sockets_a_pair_has(server, count):
    groups = form(3, server, num_sockets={0: count, 1: 16})
    results = reduce_everywhere(list(groups.values()))
    assert all((results[rank] == 6).all() for rank in range(3))


def test_sixty_four_ranks_meet_and_reduce_by_every_algorithm(server):
    groups = form(64, server, timeout=60.0)

    def body(group):
        for algorithm in ALL_REDUCE:
            result = group.all_reduce(np.arange(100.0) + group.rank, algorithm=algorithm)
            np.testing.assert_array_equal(result, 64 * np.arange(100.0) + 63 * 32)
        return group.topology

    topologies = local.on_threads([groups[rank] for rank in range(64)], body)
    assert set(topologies) == {Topology((range(64),), shared=os.environ["TFDIST_TRANSPORT"] == "shm")}
    for group in groups.values():
        group.close()


def test_the_missing_are_named_on_every_rank(server):
    begin = time.monotonic()
    outcome = form(4, server, timeout=1.5, present=[0, 2])
    for rank in (0, 2):
        assert isinstance(outcome[rank], RendezvousError)
        assert "Missing: rank 1, 3" in str(outcome[rank]) and "of timeout 1.5 s" in str(outcome[rank])
    assert time.monotonic() - begin < 6


def test_a_wrong_secret_is_told_to_its_owner_and_to_those_who_wait(server):
    outcome = form(2, server, timeout=2.0, secrets={1: b"another secret, quite another!!!"})
    assert isinstance(outcome[1], AuthenticationError)
    assert isinstance(outcome[0], RendezvousError)
    assert "Missing: rank 1" in str(outcome[0]) and "did not know the job's secret" in str(outcome[0])


def test_garbage_on_every_port_harms_nobody(server, monkeypatch):
    listen = mesh._listen
    listeners = []

    def listen_and_tell(host, backlog):
        listeners.append(listen(host, backlog))
        return listeners[-1]

    monkeypatch.setattr(mesh, "_listen", listen_and_tell)
    stop = threading.Event()

    def knock():
        while not stop.is_set():
            addresses = [parse_address(server.address)]
            addresses += [s.getsockname() for s in list(listeners) if s.fileno() >= 0]
            for address in addresses:
                try:
                    with socket.create_connection(address, timeout=1) as sock:
                        sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 20)
                except OSError:
                    continue
            time.sleep(0.002)

    stranger = threading.Thread(target=knock)
    stranger.start()
    try:
        groups = form(3, server)
        results = reduce_everywhere(list(groups.values()))
    finally:
        stop.set()
        stranger.join()
    assert all((results[rank] == 6).all() for rank in range(3))


def test_another_generation_does_not_meet(server):
    outcome = form(2, server, timeout=1.0, generations={0: 0, 1: 1})
    for rank in (0, 1):
        assert isinstance(outcome[rank], RendezvousError)
        assert f"Missing: rank {1 - rank}" in str(outcome[rank])
