"""TLS on every connection of a job, where TFDIST_TLS is set.

The certificate of the side that was connected to is given (TFDIST_TLS_CERT and TFDIST_TLS_KEY: then both sides show theirs,
which must be signed by one of TFDIST_TLS_CA), or drawn by each process for itself. Either way the proofs of the handshake
within are bound to that certificate (RFC 5929, "tls-server-end-point"): whoever decrypts on the way has another one, and
neither side accepts the other's proof. So nothing but the job's secret needs to be handed out.

Whoever uses the connection, native code too, moves plain bytes at one end of a pair of sockets; a thread encrypts what
comes at the other (pump.py).
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time

from tfdist.cluster import variables
from tfdist.cluster.frames import receive_some, send_all
from tfdist.cluster.pump import Pump
from tfdist.errors import AuthenticationError, ConfigurationError

_OPENSSL_SECONDS = 30.0
_RECEIVE_BYTES = 1 << 14
_DRAW = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=tfdist "
    "-keyout /dev/stdout -out /dev/stdout"
)


@dataclasses.dataclass(frozen=True)
class Contexts:
    """What both sides of a connection need.

    Args:
      server: `ssl.SSLContext` of the side that was connected to.
      client: that of the other.
      fingerprint: bytes, SHA-256 of this process's certificate.
    """

    server: ssl.SSLContext
    client: ssl.SSLContext
    fingerprint: bytes


def wrap(sock, *, initiator, timeout, environ=os.environ):
    """Makes a connected socket TLS, or leaves it as it is where TFDIST_TLS is not set.

    Args:
      sock: a connected socket; of no use where another one is returned.
      initiator: bool, True on the side that connected.
      timeout: float seconds for all of it.

    Returns:
      `(socket, binding)`: `sock` itself, or one end of a pair of plain sockets, between whose other end and `sock` a thread
      moves bytes until both sides have ended; and bytes that both sides know and nobody between them.

    Raises:
      AuthenticationError: the peer does not speak TLS, or shows a certificate that is not accepted.
      ConfigurationError: there is no certificate to be had.
      ConnectionClosedError, OSError: the connection broke, or the time was over.
    """
    settings = variables.tls(environ)
    if settings is None:
        return sock, b""
    contexts = _contexts(settings)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = contexts.client if initiator else contexts.server
    tls = context.wrap_bio(incoming, outgoing, server_side=not initiator)
    try:
        _shake_hands(sock, tls, incoming, outgoing, time.monotonic() + timeout)
    except ssl.SSLError as error:
        raise AuthenticationError(
            f"The peer was expected to speak TLS, as TFDIST_TLS=1 says here. Received: {error.reason or error}. "
            "Set TFDIST_TLS on all hosts or on none, with certificates of one authority."
        ) from error
    binding = hashlib.sha256(tls.getpeercert(binary_form=True)).digest() if initiator else contexts.fingerprint
    ours, theirs = socket.socketpair()
    far = socket.socket(fileno=sock.detach())  # the caller may close `sock` too early, the thread knows when
    Pump(theirs, far, tls, incoming, outgoing).start()
    return ours, binding


def check(environ):
    """Raises ConfigurationError where `wrap` would: before anything is started."""
    settings = variables.tls(environ)
    if settings is not None:
        _contexts(settings)


def _shake_hands(sock, tls, incoming, outgoing, deadline):
    is_done = False
    while not is_done:
        try:
            tls.do_handshake()
            is_done = True
        except ssl.SSLWantReadError:
            pass
        finally:  # why it is refused, too
            if outgoing.pending:
                send_all(sock, outgoing.read(), deadline)
        if not is_done:
            incoming.write(receive_some(sock, _RECEIVE_BYTES, deadline))


@functools.cache
def _contexts(settings):
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False  # workers have addresses, often no names
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED if settings.certificate else ssl.CERT_NONE
    server.num_tickets = 0  # no connection is resumed
    if settings.certificate:
        _load_given(settings, server, client)
        with open(settings.certificate, encoding="ascii") as file:
            text = file.read()
    else:
        text = _draw()
        with _file_with(text) as path:
            server.load_cert_chain(path)
    begin = text.index("-----BEGIN CERTIFICATE")
    end = text.index("-----END CERTIFICATE-----", begin) + len("-----END CERTIFICATE-----")
    return Contexts(server, client, hashlib.sha256(ssl.PEM_cert_to_DER_cert(text[begin:end])).digest())


def _load_given(settings, server, client):
    for context in (server, client):
        try:
            context.load_cert_chain(settings.certificate, settings.key)
            context.load_verify_locations(settings.authority or settings.certificate)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                "TFDIST_TLS_CERT, TFDIST_TLS_KEY and TFDIST_TLS_CA are expected to name a certificate, its key and its authority. "
                f"Received: TFDIST_TLS_CERT={settings.certificate!r}, TFDIST_TLS_KEY={settings.key!r}, "
                f"TFDIST_TLS_CA={settings.authority!r} ({error}). Correct them, or unset all to have a certificate drawn."
            ) from error


def _draw():
    """Returns a new key and a certificate of it, PEM."""
    program = shutil.which("openssl")
    if program is None:
        raise ConfigurationError(
            "TFDIST_TLS=1 is expected with a certificate, or with the program openssl to draw one. Received: neither. "
            "Install openssl, or set TFDIST_TLS_CERT and TFDIST_TLS_KEY."
        )
    done = subprocess.run(
        [program, *_DRAW.split()[1:]], stdin=subprocess.DEVNULL, capture_output=True, timeout=_OPENSSL_SECONDS
    )
    if done.returncode:
        raise ConfigurationError(
            f"openssl is expected to draw a certificate. Received: {done.stderr.decode(errors='replace').strip()[-300:]!r}. "
            "Set TFDIST_TLS_CERT and TFDIST_TLS_KEY instead."
        )
    return done.stdout.decode("ascii")


@contextlib.contextmanager
def _file_with(text):
    """The ssl module reads keys from files only: one that nobody else can open, and that is gone at once."""
    with tempfile.NamedTemporaryFile("w", encoding="ascii") as file:  # mode 0600
        file.write(text)
        file.flush()
        yield file.name
