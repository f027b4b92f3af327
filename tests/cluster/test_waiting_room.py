import contextlib
import socket

import pytest

from tfdist.cluster.waiting_room import WaitingRoom


def _is_closed(sock):
    sock.settimeout(5.0)
    return sock.recv(1) == b""


@pytest.fixture
def pairs():
    with contextlib.ExitStack() as stack:
        yield [[stack.enter_context(sock) for sock in socket.socketpair()] for _ in range(4)]


def test_who_has_waited_longest_makes_room(pairs):
    room = WaitingRoom(places=2)
    with contextlib.ExitStack() as stack:
        for ours, _ in pairs:
            stack.enter_context(room.place(ours))
        assert room.num_evicted == 2
        assert _is_closed(pairs[0][1]) and _is_closed(pairs[1][1])
        for ours, theirs in pairs[2:]:
            theirs.send(b"x")
            assert ours.recv(1) == b"x"


def test_who_has_left_takes_no_place(pairs):
    room = WaitingRoom(places=1)
    for ours, _ in pairs:
        with room.place(ours):
            pass
    assert room.num_evicted == 0


def test_a_connection_is_shut_down_though_its_socket_was_wrapped(pairs):
    room = WaitingRoom(places=1)
    with room.place(pairs[0][0]):
        wrapped = socket.socket(fileno=pairs[0][0].detach())  # as ssl does
        with wrapped, room.place(pairs[1][0]):
            assert _is_closed(pairs[0][1])


def test_clear_shuts_all_down(pairs):
    room = WaitingRoom()
    with room.place(pairs[0][0]), room.place(pairs[1][0]):
        room.clear()
        assert _is_closed(pairs[0][1]) and _is_closed(pairs[1][1])
