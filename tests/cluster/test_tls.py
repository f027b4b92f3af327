import contextlib
import secrets
import shutil
import socket
import subprocess
import threading
import time

import pytest

from tfdist.cluster import tls, variables
from tfdist.cluster.address import parse_address
from tfdist.cluster.frames import receive_exactly
from tfdist.cluster.handshake import authenticate, secure
from tfdist.cluster.store import StoreClient, StoreServer
from tfdist.errors import AuthenticationError, ConfigurationError

SECRET = b"a secret of the tests"
pytestmark = [
    pytest.mark.usefixtures("no_thread_is_left"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here to draw certificates with"),
]


@pytest.fixture
def encrypted(monkeypatch):
    monkeypatch.setenv("TFDIST_TLS", "1")


def _draw(folder, name, *more):
    key, certificate = str(folder / f"{name}.key"), str(folder / f"{name}.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj".split()
    subprocess.run(
        [*command, f"/CN={name}", "-keyout", key, "-out", certificate, *more], check=True, capture_output=True
    )
    return certificate, key


def _pair():
    """The two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname(), 5.0)
        return one, listener.accept()[0]


def _both(initiator, responder, ends=None):
    """Calls both with the ends of a connection at once; returns what each returned, or raised."""
    results = [None, None]

    def call(index, function, sock):
        try:
            results[index] = function(sock)
        except Exception as error:
            results[index] = error
            sock.close()

    threads = [threading.Thread(target=call, args=a) for a in zip((0, 1), (initiator, responder), ends or _pair())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return results


def _side(initiator, identity=b"", secret=SECRET, timeout=5.0):
    return lambda sock: secure(sock, secret, initiator=initiator, identity=identity, timeout=timeout)


def _connected():
    (one, _), (other, _) = _both(_side(True), _side(False))
    return one, other


def _forward(source, target, heard=None):
    """Passes on what comes at one socket to another, until that ends."""
    try:
        while data := source.recv(65536):
            if heard is not None:
                heard.extend(data)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def _between(one, other, heard=None):
    """Starts to pass everything on between two sockets."""
    threads = [threading.Thread(target=_forward, args=(*pair, heard)) for pair in ((one, other), (other, one))]
    for thread in threads:
        thread.start()
    return threads


def test_nothing_is_sent_in_plain_text(encrypted):
    heard, (near, middle), (beyond, far) = bytearray(), _pair(), _pair()
    threads = _between(middle, beyond, heard)
    results = _both(_side(True, b"it is me"), _side(False, b"them"), (near, far))
    assert [identity for _, identity in _close(results)] == [b"them", b"it is me"]
    _end(threads, middle, beyond)
    assert len(heard) > 500 and not any(text in heard for text in (b"it is me", b"tfdist/1", b"them"))


def test_somebody_between_who_decrypts_is_refused(encrypted, monkeypatch):
    """He has a certificate of his own and passes on, word for word, what both sides prove."""
    (near, middle), (beyond, far) = _pair(), _pair()
    theirs, own, ends = tls._contexts(variables.Tls()), tls._contexts.__wrapped__(variables.Tls()), []

    def decrypt():
        ends.append(tls.wrap(middle, initiator=False, timeout=5.0)[0])
        ends.append(tls.wrap(beyond, initiator=True, timeout=5.0)[0])
        for thread in _between(*ends):
            thread.join(20)

    between = threading.Thread(target=decrypt)
    monkeypatch.setattr(tls, "_contexts", lambda settings: own if threading.current_thread() is between else theirs)
    between.start()
    results = _both(_side(True, timeout=2.0), _side(False, timeout=2.0), (near, far))
    assert [type(result) for result in results] == [AuthenticationError, AuthenticationError]
    assert "a wrong proof" in str(results[1])
    _end([between], *ends)


def _end(threads, *sockets):
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize("number_of_certificates", [1, 2])
def test_given_certificates(encrypted, monkeypatch, tmp_path, number_of_certificates):
    certificate, key = _draw(tmp_path, "one")
    monkeypatch.setenv("TFDIST_TLS_CERT", certificate)
    monkeypatch.setenv("TFDIST_TLS_KEY", key)
    if number_of_certificates == 1:
        assert [identity for _, identity in _close(_both(_side(True, b"a"), _side(False, b"b")))] == [b"b", b"a"]
        return
    other = dict(zip(("TFDIST_TLS_CERT", "TFDIST_TLS_KEY"), _draw(tmp_path, "other")), TFDIST_TLS="1")
    initiator, responder = _both(_side(True), lambda sock: tls.wrap(sock, initiator=False, timeout=5.0, environ=other))
    assert isinstance(initiator, AuthenticationError) and "CERTIFICATE_VERIFY_FAILED" in str(initiator)
    assert isinstance(responder, (AuthenticationError, OSError))


def test_a_wrong_secret_is_refused_within(encrypted):
    initiator, responder = _both(_side(True), _side(False, secret=b"another"))
    assert "it refused ours" in str(initiator) and "a wrong proof" in str(responder)


def test_one_side_without_tls(encrypted):
    initiator, responder = _both(lambda sock: authenticate(sock, SECRET, initiator=True, timeout=2.0), _side(False))
    assert isinstance(initiator, AuthenticationError)
    assert "The peer was expected to speak TLS, as TFDIST_TLS=1 says here" in str(responder)
    initiator, responder = _both(_side(True), lambda sock: authenticate(sock, SECRET, initiator=False, timeout=2.0))
    assert "expected to speak TLS" in str(initiator)
    assert "Set TFDIST_TLS on all hosts or on none" in str(responder)


def test_a_stranger_who_says_nothing_is_given_up(encrypted):
    near, far = _pair()
    with near, pytest.raises(AuthenticationError):
        secure(far, SECRET, initiator=False, timeout=0.2)
    assert far.fileno() == -1


@pytest.mark.parametrize("variables_, text", [
    ({"TFDIST_TLS": "yes"}, "TFDIST_TLS is expected to be 0 or 1"),
    ({"TFDIST_TLS": "1", "TFDIST_TLS_CERT": "/a"}, "TFDIST_TLS_CERT and TFDIST_TLS_KEY are expected together"),
    ({"TFDIST_TLS": "1", "TFDIST_TLS_CERT": "/none", "TFDIST_TLS_KEY": "/none"}, "are expected to name a certificate"),
])  # fmt: skip
def test_settings_that_make_no_sense(variables_, text):
    near, far = _pair()
    with near, far, pytest.raises(ConfigurationError, match=text):
        tls.wrap(near, initiator=True, timeout=1.0, environ=variables_)


def test_without_openssl(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigurationError, match="the program openssl to draw one"):
        tls._contexts.__wrapped__(variables.Tls())


def test_openssl_that_fails(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")
    with pytest.raises(ConfigurationError, match="openssl is expected to draw a certificate"):
        tls._contexts.__wrapped__(variables.Tls())


def test_without_tls_a_socket_stays_as_it_is():
    near, far = _pair()
    with near, far:
        assert tls.wrap(near, initiator=True, timeout=1.0, environ={}) == (near, b"")


def test_the_store_speaks_it(encrypted):
    with StoreServer(secret=SECRET) as server, StoreClient(server.address, SECRET, timeout=5.0) as client:
        client.set("k", bytes(range(256)) * 2000)
        assert client.get("k") == bytes(range(256)) * 2000
        with pytest.raises(AuthenticationError, match="the store at"):
            StoreClient(server.address, b"another", timeout=5.0)
        with socket.create_connection(parse_address(server.address)) as stranger, contextlib.suppress(ConnectionError):
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while stranger.recv(4096):
                pass


def test_the_pump_moves_both_ways_at_once(encrypted):
    one, other = _connected()
    texts = [secrets.token_bytes(3_000_001) for _ in range(2)]
    got = [None, None]

    def take(index, sock):
        got[index] = receive_exactly(sock, len(texts[0]), time.monotonic() + 20)

    threads = [threading.Thread(target=take, args=a) for a in ((0, one), (1, other))]
    threads += [threading.Thread(target=sock.sendall, args=(text,)) for sock, text in zip((other, one), texts)]
    for thread in threads:
        thread.start()
    _end(threads)
    assert got == texts
    one.close()
    assert other.recv(1) == b""
    other.close()


def test_the_pump_closes_one_way_and_keeps_the_other(encrypted):
    one, other = _connected()
    with one, other:
        one.sendall(b"the last word")
        one.shutdown(socket.SHUT_WR)
        assert receive_exactly(other, 13, time.monotonic() + 5) == b"the last word"
        assert other.recv(1) == b""
        other.sendall(b"not of mine")
        assert receive_exactly(one, 11, time.monotonic() + 5) == b"not of mine"


def test_the_pump_waits_for_who_does_not_read(encrypted):
    one, other = _connected()
    with one, other:
        one.settimeout(0.2)
        with pytest.raises(TimeoutError):
            while True:
                one.send(bytes(1 << 20))
        other.close()  # with all that lies unread
        one.settimeout(5.0)
        with pytest.raises(OSError):
            while True:
                one.send(bytes(1 << 20))


def _close(results):
    for result in results:
        assert not isinstance(result, Exception), result
        result[0].close()
    return results


def test_nothing_is_lost_where_one_side_says_goodbye_while_the_other_still_sends(encrypted):
    for number in range(8):
        one, other = _connected()
        text = secrets.token_bytes(200_000)
        late = threading.Timer(0.0005 * number, lambda sock=other, text=text: (sock.sendall(text), sock.close()))
        other.sendall(bytes(100_000))
        one.sendall(b"goodbye")
        one.shutdown(socket.SHUT_WR)
        late.start()
        assert receive_exactly(one, 300_000, time.monotonic() + 5) == bytes(100_000) + text
        assert one.recv(1) == b""
        late.join(5)
        one.close()
