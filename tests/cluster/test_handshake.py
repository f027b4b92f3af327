import socket
import threading
import time

import pytest

from tfdist.cluster.handshake import authenticate
from tfdist.errors import AuthenticationError, ConfigurationError


def _both(first, second):
    """Runs first(sock) and second(sock) on the ends of one connection; returns what each returned or raised."""
    results = [None, None]

    def call(index, function, sock):
        try:
            results[index] = function(sock)
        except Exception as error:
            results[index] = error
            sock.close()

    left, right = socket.socketpair()
    threads = [threading.Thread(target=call, args=a) for a in ((0, first, left), (1, second, right))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()
    left.close()
    right.close()
    return results


def _side(secret, initiator, identity=b"", timeout=5.0):
    return lambda sock: authenticate(sock, secret, initiator=initiator, identity=identity, timeout=timeout)


def test_each_side_learns_the_other_sides_identity():
    assert _both(_side(b"s", True, b"rank 1"), _side(b"s", False, b"")) == [b"", b"rank 1"]


def test_a_wrong_secret_is_refused_on_both_sides():
    initiator, responder = _both(_side(b"one", True), _side(b"two", False))
    assert isinstance(initiator, AuthenticationError) and "it refused ours" in str(initiator)
    assert isinstance(responder, AuthenticationError) and "a wrong proof" in str(responder)
    assert "TFDIST_SECRET" in str(initiator)


def test_a_responder_that_lies_about_the_verdict_is_refused():
    def impostor(sock):
        sock.sendall(b"tfdist/1" + bytes(32) + b"\0\0")
        sock.recv(4096)
        sock.sendall(b"\x01" + bytes(32))

    assert "a wrong proof" in str(_both(_side(b"s", True), impostor)[0])


def test_a_reflected_handshake_proves_nothing():
    def mirror(sock):
        sock.sendall(sock.recv(4096))  # the same hello, so that only the role tells the two proofs apart
        sock.sendall(b"\x01" + sock.recv(4096))

    assert "a wrong proof" in str(_both(_side(b"s", True), mirror)[0])


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"x", b"tfdist/2"])
def test_garbage_is_refused_at_its_first_bytes(garbage):
    error, _ = _both(_side(b"s", False), lambda sock: sock.sendall(garbage))
    assert f"first bytes {garbage[:8]!r}" in str(error)


def test_an_identity_that_is_too_long_is_refused():
    def long_winded(sock):
        sock.sendall(b"tfdist/1" + bytes(32) + b"\xff\xff")
        sock.recv(4096)

    assert "length=65535" in str(_both(_side(b"s", False), long_winded)[0])


def test_a_peer_that_closes_is_refused():
    def leave(sock):
        sock.recv(4096)
        sock.close()

    error, _ = _both(_side(b"s", False), leave)
    assert "connection closed after 0 of 8 bytes" in str(error)


def test_a_peer_that_trickles_is_cut_off_by_one_limit_for_all():
    def trickle(sock):
        for byte in b"tfdist/1" + bytes(20):
            time.sleep(0.05)
            sock.sendall(bytes((byte,)))

    start = time.monotonic()
    error, _ = _both(_side(b"s", False, timeout=0.3), trickle)
    assert isinstance(error, AuthenticationError) and "timeout=0.3 s" in str(error)
    assert time.monotonic() - start < 3


def test_the_sockets_own_timeout_is_restored():
    def side(initiator):
        def run(sock):
            sock.settimeout(7.0)
            authenticate(sock, b"s", initiator=initiator, timeout=5.0)
            return sock.gettimeout()

        return run

    assert _both(side(True), side(False)) == [7.0, 7.0]


@pytest.mark.parametrize("secret", [b"", "text", None])
def test_what_is_no_secret_is_a_configuration_error(secret):
    left, right = socket.socketpair()
    with left, right, pytest.raises(ConfigurationError, match="secret is expected to be bytes"):
        authenticate(left, secret, initiator=True, timeout=1.0)


def test_own_identity_is_limited():
    left, right = socket.socketpair()
    with left, right, pytest.raises(ConfigurationError, match="len\\(identity\\)=1025"):
        authenticate(left, b"s", initiator=True, identity=bytes(1025), timeout=1.0)
