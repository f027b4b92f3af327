"""A crowd of strangers: none gets in, and whoever knows the secret does, meanwhile."""

import contextlib
import socket
import threading
import time

import pytest

from tests.fuzz.strangers import Strangers, record
from tfdist.cluster.address import format_address, parse_address
from tfdist.cluster.doorman import Doorman
from tfdist.cluster.handshake import authenticate
from tfdist.cluster.store import StoreServer

SECRET = b"a secret of the tests"
_COUNT, _SECONDS, _PLACES = 120, 2.0, 16


@contextlib.contextmanager
def _store():
    with StoreServer(secret=SECRET) as server:
        yield server.address


@contextlib.contextmanager
def _parameter_server():
    from tfdist.parameter_server.server import ParameterServer

    with ParameterServer(2, SECRET) as server:
        yield server.address


@contextlib.contextmanager
def _doorman():
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener, Doorman(listener, SECRET) as doorman:
        is_over = threading.Event()

        def welcome():
            while not is_over.is_set():
                with contextlib.suppress(TimeoutError):
                    doorman.next(0.05)[0].close()

        thread = threading.Thread(target=welcome)
        thread.start()
        yield format_address(*listener.getsockname())
        is_over.set()
        thread.join(5.0)


@pytest.mark.parametrize("door", [_store, _parameter_server, _doorman])
def test_none_gets_in_and_whoever_knows_the_secret_does(door, monkeypatch):
    monkeypatch.setattr("tfdist.cluster.waiting_room._PLACES", _PLACES)
    with door() as address:
        identity = b'["control", 0, 1]'
        strangers = Strangers(address, record(address, SECRET, identity), _COUNT, _SECONDS)
        deadline, num_honest = time.monotonic() + 60, 0
        while strangers.is_alive() and time.monotonic() < deadline:
            with socket.create_connection(parse_address(address), 10.0) as sock:
                authenticate(sock, SECRET, initiator=True, identity=identity)
            num_honest += 1
        strangers.join(5.0)
        assert not strangers.is_alive()
    assert strangers.num_let_in == 0
    assert strangers.num_came == _COUNT and num_honest > 0
