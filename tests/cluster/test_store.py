import contextlib
import socket
import struct
import threading
import time

import pytest

from tfdist.cluster.address import parse_address
from tfdist.cluster.frames import MAX_FRAME_BYTES, encode, receive_frame
from tfdist.cluster.handshake import authenticate
from tfdist.cluster.store import StoreClient, StoreServer, StoreTimeoutError
from tfdist.cluster.store import server as store_server
from tfdist.errors import AuthenticationError, ConfigurationError, RendezvousError, TransportError

SECRET = b"a secret of the tests"

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.fixture
def server():
    with StoreServer(secret=SECRET) as server:
        yield server


@pytest.fixture
def client(server):
    with StoreClient(server.address, SECRET, timeout=5.0) as client:
        yield client


def _raw(server, prove=True):
    sock = socket.create_connection(parse_address(server.address), timeout=5)
    if prove:
        authenticate(sock, SECRET, initiator=True, timeout=5.0)
    return sock


def _wait_for_rejected(server, count):
    deadline = time.monotonic() + 5
    while server.rejected()[0] < count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.rejected()[0] == count


def test_values_are_bytes_and_come_back_equal(client):
    every_byte = bytes(range(256)) * 4000
    client.set("a/ü", every_byte)
    assert client.get("a/ü") == every_byte
    assert client.try_get("b") is None
    client.set("a/1", b"")
    assert client.try_get("a/1") == b""
    assert client.keys("a/") == ["a/1", "a/ü"]
    assert client.delete("a/1") and not client.delete("a/1")
    assert client.keys() == ["a/ü"]


def test_what_is_taken_is_recorded_in_the_same_step_while_there_is_some(client):
    totals = [client.take("taken", f"held/{who}", b"#-# of \xff", 2) for who in "abc"]
    assert totals == [1, 2, 3]
    assert client.items("held/") == {"held/a": b"1-1 of \xff", "held/b": b"2-2 of \xff"}
    assert client.items("nothing") == {}
    client.set("text", b"no number")
    with pytest.raises(ConfigurationError, match="A counter is expected to hold an integer. Received: key='text'"):
        client.take("text", "held/a", b"", 1)


@pytest.mark.parametrize(
    "header", [{"most": 1}, {"record": 3, "most": 1}, {"record": "a" * 2000, "most": 1}, {"record": "a"}]
)
def test_a_taking_that_is_none_ends_the_connection(server, header):
    with _raw(server) as sock:
        sock.sendall(encode({"op": "take", "key": "taken", **header}, b""))
        assert sock.recv(1) == b""
    _wait_for_rejected(server, 1)
    assert server.items() == {}


def test_add_is_indivisible(server, client):
    def count():
        with StoreClient(server.address, SECRET, timeout=5.0) as other:
            for _ in range(50):
                other.add("n", 1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert client.add("n", -100) == 100
    assert client.get("n") == b"100"
    client.set("text", b"x")
    with pytest.raises(ConfigurationError, match="A counter is expected to hold an integer. Received: key='text'"):
        client.add("text", 1)


def test_get_wakes_up_when_the_key_is_set(server, client):
    got = []

    def wait():
        with StoreClient(server.address, SECRET, timeout=5.0) as other:
            got.append((other.get("late", timeout=10.0), time.monotonic()))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    set_at = time.monotonic()
    client.set("late", b"now")
    thread.join(timeout=5)
    assert got[0][0] == b"now" and got[0][1] - set_at < 0.3


def test_get_names_the_key_when_nobody_sets_it(client):
    start = time.monotonic()
    with pytest.raises(StoreTimeoutError, match="'address/3' was expected in the store .* timeout=0.2 s") as caught:
        client.get("address/3", timeout=0.2)
    assert isinstance(caught.value, TimeoutError) and isinstance(caught.value, RendezvousError)
    assert 0.15 < time.monotonic() - start < 2
    client.set("address/3", b"still usable")
    assert client.get("address/3") == b"still usable"


def test_infinite_timeout_is_allowed(client):
    client.set("k", b"v")
    assert client.get("k", timeout=float("inf")) == b"v"


def test_wrong_secret_is_refused_counted_and_harms_nobody(server, client):
    with pytest.raises(AuthenticationError, match="Connecting to the store at .* failed.*refused ours"):
        StoreClient(server.address, b"another", timeout=5.0)
    _wait_for_rejected(server, 1)
    assert client.rejected() == server.rejected()
    assert client.rejected()[1].startswith("127.0.0.1:")
    client.set("k", b"v")
    assert client.get("k") == b"v"


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack(">I", MAX_FRAME_BYTES + 1),
        struct.pack(">I", 0xFFFFFFFF) + b"x" * 100,
        struct.pack(">I", 0),
        struct.pack(">IH", 4, 2) + b"{]",
        struct.pack(">IH", 4, 2) + b"[]",
        struct.pack(">IH", 4, 200) + b"{}",
        struct.pack(">IH", 2 + 60000, 60000) + b"[" * 60000,
        encode({"op": "unknown"}),
        encode({"op": "set", "key": 7}),
        encode({"op": "set", "key": "k" * 1025}),
        encode({"op": "get", "key": "k", "timeout": "soon"}),
        encode({"op": "get", "key": "k", "timeout": float("nan")}),
        encode({"op": "get", "key": "k", "timeout": -1}),
        encode({"op": "add", "key": "k", "amount": True}),
        encode({"op": ["set"], "key": "k"}),
    ],
    ids=lambda garbage: repr(garbage[:24]),
)
def test_frames_that_are_none_close_only_their_own_connection(server, client, garbage):
    with _raw(server) as sock:
        sock.sendall(garbage)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    _wait_for_rejected(server, 1)
    client.set("k", b"v")
    assert client.get("k") == b"v"


@pytest.mark.parametrize("noise", [b"\0" * 4096, b"GET / HTTP/1.0\r\n\r\n", b"tfdist/1" + b"\xff" * 34])
def test_noise_before_the_proof_harms_nobody(server, client, noise):
    with _raw(server, prove=False) as sock:
        sock.sendall(noise)
        _wait_for_rejected(server, 1)
    client.set("k", b"v")
    assert client.get("k") == b"v"


def test_half_open_clients_do_not_delay_others(server):
    silent = [_raw(server, prove=False) for _ in range(20)]
    stuck = _raw(server)
    stuck.sendall(b"\0\0")
    start = time.monotonic()
    with StoreClient(server.address, SECRET, timeout=5.0) as client:
        client.set("k", b"v")
        assert client.get("k") == b"v"
    assert time.monotonic() - start < 2
    for sock in (*silent, stuck):
        sock.close()


def test_silent_clients_are_dropped(monkeypatch):
    monkeypatch.setattr("tfdist.cluster.store.server._HANDSHAKE_SECONDS", 0.2)
    with StoreServer(secret=SECRET) as server, _raw(server, prove=False) as sock:
        assert b"" in (sock.recv(4096), sock.recv(4096))
        _wait_for_rejected(server, 1)


def test_too_many_connections_are_turned_away(monkeypatch):
    monkeypatch.setattr("tfdist.cluster.store.server._CONNECTIONS_AT_MOST", 2)
    with StoreServer(secret=SECRET) as server, _raw(server), _raw(server):
        with pytest.raises(AuthenticationError):
            _raw(server)
        _wait_for_rejected(server, 1)


def test_values_over_the_limit_are_refused_before_they_are_sent(client):
    with pytest.raises(ValueError, match=f"at most {MAX_FRAME_BYTES} bytes. Received: length="):
        client.set("k", bytes(MAX_FRAME_BYTES))
    with pytest.raises(ConfigurationError, match="key is expected to have at most 1024 bytes"):
        client.set("k" * 1025, b"")
    client.set("k", b"v")
    assert client.get("k") == b"v"


def test_a_list_of_keys_over_the_limit_is_an_error_and_no_more(client):
    for index in range(1100):
        client.set(f"{index:01000d}", b"")
    with pytest.raises(ConfigurationError, match="A list of keys is expected to fit into a frame"):
        client.keys()
    assert len(client.keys("0" * 997)) == 1000


def test_a_client_that_waits_for_long_holds_nobody_up(server, client, monkeypatch):
    monkeypatch.setattr(store_server, "_LOOK_SECONDS", 0.05)
    with _raw(server) as sock:
        sock.sendall(encode({"op": "get", "key": "late", "timeout": 100}))
        time.sleep(0.2)  # it was looked after
        client.set("late", b"here")
        sock.settimeout(5.0)
        assert receive_frame(sock)[1] == b"here"


def test_a_client_that_goes_while_it_waits_leaves_nothing_behind(server, monkeypatch):
    monkeypatch.setattr(store_server, "_LOOK_SECONDS", 0.05)
    with _raw(server) as sock:
        sock.sendall(encode({"op": "get", "key": "never", "timeout": 100}))
        time.sleep(0.2)
        assert len(server._connections) == 1
    deadline = time.monotonic() + 10
    while server._connections:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_closing_the_server_wakes_those_who_wait():
    server = StoreServer(secret=SECRET)
    client = StoreClient(server.address, SECRET, timeout=5.0)
    timer = threading.Timer(0.2, server.close)
    timer.start()
    start = time.monotonic()
    with pytest.raises(TransportError, match="The store was expected to answer 'get'.*rank 0 or the launcher"):
        client.get("never", timeout=30.0)
    assert time.monotonic() - start < 2
    timer.join()
    with pytest.raises(TransportError):
        client.set("k", b"v")
    client.close()


def test_closing_the_server_ends_idle_connections():
    server = StoreServer(secret=SECRET)
    with _raw(server) as idle:
        start = time.monotonic()
        server.close()
        assert time.monotonic() - start < 2
        idle.settimeout(2.0)
        assert idle.recv(1) == b""


def test_a_client_waits_for_a_store_that_starts_later():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    servers = []
    timer = threading.Timer(0.4, lambda: servers.append(StoreServer("127.0.0.1", port, secret=SECRET)))
    timer.start()
    StoreClient(f"127.0.0.1:{port}", SECRET, timeout=10.0).close()
    timer.join()
    servers[0].close()


def test_nobody_at_the_address_is_a_rendezvous_error_in_time():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets the port
        port = taken.getsockname()[1]
        start = time.monotonic()
        with pytest.raises(RendezvousError, match=f"expected to answer at 127.0.0.1:{port}.*timeout=0.3 s"):
            StoreClient(f"127.0.0.1:{port}", SECRET, timeout=0.3)
        assert time.monotonic() - start < 2


def test_a_port_in_use_is_a_rendezvous_error(server):
    with pytest.raises(RendezvousError, match="expected to listen at .*TFDIST_PORT"):
        StoreServer("127.0.0.1", parse_address(server.address)[1], secret=SECRET)


def test_no_secret_no_server():
    with pytest.raises(ConfigurationError, match="secret is expected"):
        StoreServer(secret=b"")


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:0", "host:65536", "host:x", "::1:5", "[]:5"])
def test_addresses_of_another_form_are_refused(address):
    with pytest.raises(ConfigurationError, match="MY_ADDRESS is expected to be host:port"):
        parse_address(address, "MY_ADDRESS")


def test_ipv6_addresses_are_in_brackets():
    assert parse_address("[::1]:80") == ("::1", 80)


def test_frames_survive_being_sent_byte_by_byte():
    left, right = socket.socketpair()
    with left, right:

        def trickle():
            for byte in encode({"op": "x"}, b"\0value"):
                left.sendall(bytes((byte,)))

        thread = threading.Thread(target=trickle)
        thread.start()
        assert receive_frame(right) == ({"op": "x"}, b"\0value")
        thread.join(timeout=5)
