"""Both ends of a connection prove that they know the job's secret, without sending it.

    hello   = magic | 32 random bytes | u16 length | identity           each side, at once
    proof_i = HMAC-SHA256(secret, "initiator" | hello_i | hello_r | binding)      the initiator, first
    verdict = 1 | proof_r  or  0                                        the responder, after checking proof_i
    proof_r = HMAC-SHA256(secret, "responder" | hello_i | hello_r | binding)

The random bytes make a recorded proof worthless, the role in the text makes a reflected one worthless, and the
identities are part of what is proven. The secret must be random (it could be searched for offline otherwise). This
authenticates the peer when the connection opens; the bytes that follow are neither encrypted nor signed, unless the
connection is TLS (tls.py): then `binding`, which both ends of that know, is added to what is proven.
"""

import hashlib
import hmac
import os
import struct
import time

from tfdist.cluster.frames import ConnectionClosedError, receive_exactly, receive_some, send_all
from tfdist.cluster.tls import wrap
from tfdist.errors import AuthenticationError, ConfigurationError

MAX_IDENTITY_BYTES = 1024
_MAGIC = b"tfdist/1"
_NONCE_BYTES = 32
_PROOF_BYTES = hashlib.sha256().digest_size
_IDENTITY_LENGTH = struct.Struct(">H")
_TLS_RECORD = b"\x16\x03"
_PERHAPS_TLS = "It speaks TLS. Set TFDIST_TLS on all hosts or on none."
_ANOTHER = "Another program uses this port, or another version of tfdist."
_SAME_SECRET = (
    "Give every process of the job the same TFDIST_SECRET or TFDIST_SECRET_FILE, or start it by `tfdist run`."
)


def secure(sock, secret, *, initiator, identity=b"", timeout=10.0):
    """Makes a connected socket one of the job's: TLS where TFDIST_TLS is set, then both sides prove the secret.

    Args:
      sock: a connected socket. Use the one that is returned instead; on an error this one is closed.
      secret, initiator, identity, timeout: as for `authenticate`.

    Returns:
      `(socket, identity)`: a socket with the time-out of `sock`, and the peer's identity, bytes.

    Raises:
      AuthenticationError: as `authenticate`; or the peer does not speak TLS, or shows a certificate that is not accepted.
      ConfigurationError: as `authenticate`; or there is no certificate to be had.
    """
    before, deadline, inner = sock.gettimeout(), time.monotonic() + timeout, None
    try:
        inner, binding = wrap(sock, initiator=initiator, timeout=timeout)
        left = max(deadline - time.monotonic(), 0.001)
        found = authenticate(inner, secret, initiator=initiator, identity=identity, timeout=left, binding=binding)
        inner.settimeout(before)
    except BaseException as error:
        (inner or sock).close()
        if isinstance(error, (ConnectionClosedError, OSError)):
            raise AuthenticationError(
                f"The peer was expected to finish the handshake of TLS within timeout={timeout:g} s. Received: {error}. "
                "Set TFDIST_TLS on all hosts or on none."
            ) from error
        raise
    return inner, found


def authenticate(sock, secret, *, initiator, identity=b"", timeout=10.0, binding=b""):
    """Authenticates both sides of a connected socket to each other.

    Costs two round trips. The socket's own time-out is as before on return; on an error close the socket.

    Args:
      sock: a connected socket. One side calls this as initiator, the other as responder.
      secret: bytes, the job's secret, at least one byte.
      initiator: bool, True on the side that connected.
      identity: bytes, at most 1 KiB: what this side says of itself (its rank, say); the peer gets it authenticated.
      timeout: float seconds for the whole exchange, however slowly the peer sends.
      binding: bytes that are proven too, the same on both sides: what TLS they speak by.

    Returns:
      The peer's identity, bytes.

    Raises:
      AuthenticationError: the peer has another secret, does not speak this protocol, closed the connection or
        was too slow.
      ConfigurationError: the secret is empty or the identity too long.
    """
    check_secret(secret)
    if len(identity) > MAX_IDENTITY_BYTES:
        raise ConfigurationError(
            f"identity is expected to have at most {MAX_IDENTITY_BYTES} bytes. "
            f"Received: len(identity)={len(identity)}. Send the rest after the handshake."
        )
    before = sock.gettimeout()
    try:
        peer_identity = _exchange(sock, bytes(secret), initiator, bytes(identity), binding, time.monotonic() + timeout)
        sock.settimeout(before)
    except TimeoutError as error:
        raise AuthenticationError(
            f"The handshake was expected to finish in time. Received: nothing more for timeout={timeout:g} s. "
            "Is a tfdist process of the same version listening there?"
        ) from error
    except (ConnectionClosedError, OSError) as error:
        raise AuthenticationError(
            f"The peer was expected to finish the handshake. Received: {error}. {_SAME_SECRET}"
        ) from error
    return peer_identity


def check_secret(secret):
    """Refuses what is no secret: anyone can prove that he knows zero bytes."""
    if not isinstance(secret, (bytes, bytearray)) or not secret:
        raise ConfigurationError(
            f"secret is expected to be bytes, at least one. Received: a secret of type {type(secret).__name__}"
            f"{' and length 0' if not secret else ''}. Pass os.urandom(32), the same to every process."
        )


def _exchange(sock, secret, initiator, identity, binding, deadline):
    hello = b"".join((_MAGIC, os.urandom(_NONCE_BYTES), _IDENTITY_LENGTH.pack(len(identity)), identity))
    send_all(sock, hello, deadline)
    peer_hello, peer_identity = _receive_hello(sock, deadline)
    transcript = hello + peer_hello if initiator else peer_hello + hello
    proof_i = hmac.digest(secret, b"initiator" + transcript + binding, "sha256")
    proof_r = hmac.digest(secret, b"responder" + transcript + binding, "sha256")
    if initiator:
        send_all(sock, proof_i, deadline)
        if receive_exactly(sock, 1, deadline) != b"\x01":
            raise AuthenticationError(
                f"The peer was expected to know this job's secret. Received: it refused ours. {_SAME_SECRET}"
            )
        _check(proof_r, receive_exactly(sock, _PROOF_BYTES, deadline))
        return peer_identity
    try:
        _check(proof_i, receive_exactly(sock, _PROOF_BYTES, deadline))
    except AuthenticationError:
        send_all(sock, b"\x00", deadline)
        raise
    send_all(sock, b"\x01" + proof_r, deadline)
    return peer_identity


def _receive_hello(sock, deadline):
    # The magic is read by itself, so that a peer speaking something else is told apart at its first bytes, not awaited.
    magic = b""
    while len(magic) < len(_MAGIC):
        magic += receive_some(sock, len(_MAGIC) - len(magic), deadline)
        if not _MAGIC.startswith(magic):
            raise AuthenticationError(
                f"The peer was expected to speak tfdist's protocol. Received: first bytes {magic!r}. "
                + (_PERHAPS_TLS if _TLS_RECORD.startswith(magic[:2]) else _ANOTHER)
            )
    rest = receive_exactly(sock, _NONCE_BYTES + _IDENTITY_LENGTH.size, deadline)
    (length,) = _IDENTITY_LENGTH.unpack(rest[_NONCE_BYTES:])
    if length > MAX_IDENTITY_BYTES:
        raise AuthenticationError(
            f"The peer's identity was expected to have at most {MAX_IDENTITY_BYTES} bytes. Received: length={length}. "
            "Another program uses this port, or another version of tfdist."
        )
    peer_identity = receive_exactly(sock, length, deadline)
    return magic + rest + peer_identity, peer_identity


def _check(expected, received):
    if not hmac.compare_digest(expected, received):
        raise AuthenticationError(
            f"The peer was expected to know this job's secret. Received: a wrong proof. {_SAME_SECRET}"
        )
