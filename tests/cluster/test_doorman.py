import contextlib
import socket
import threading
import time

import pytest

from tfdist.cluster.doorman import Doorman
from tfdist.cluster.handshake import authenticate
from tfdist.errors import AuthenticationError

SECRET = b"a secret of the tests"

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def _visit(listener, secret=None, identity=b""):
    sock = socket.create_connection(listener.getsockname(), 5.0)
    if secret is not None:
        threading.Thread(target=_prove, args=(sock, secret, identity)).start()
    return sock


def _prove(sock, secret, identity):
    with contextlib.suppress(AuthenticationError, OSError):
        authenticate(sock, secret, initiator=True, identity=identity, timeout=5.0)


def test_a_silent_one_keeps_nobody_waiting(listener):
    with _visit(listener), _visit(listener, b"another secret"), Doorman(listener, SECRET) as doorman:
        begin = time.monotonic()
        with _visit(listener, SECRET, b"me"):
            sock, identity = doorman.next(5.0)
            with sock:
                assert identity == b"me" and sock.gettimeout() is None
        assert time.monotonic() - begin < 5.0


def test_nobody_came(listener):
    with Doorman(listener, SECRET) as doorman, pytest.raises(TimeoutError):
        doorman.next(0.05)


def test_who_was_not_taken_is_sent_away(listener):
    with Doorman(listener, SECRET) as doorman:
        visitors = [_visit(listener), *(_visit(listener, SECRET) for _ in range(2))]
        doorman.next(5.0)[0].close()
    listener.close()  # whoever stood before the door hears of it
    for sock in visitors:
        sock.settimeout(5.0)
        with sock, contextlib.suppress(ConnectionError):
            while sock.recv(4096):
                pass
