"""The address at which the other workers reach this host."""

import ipaddress
import socket

from tfdist.errors import ConfigurationError

LOOPBACK = "127.0.0.1"
_ELSEWHERE = ("192.0.2.1", "2001:db8::1")  # reserved for documentation: routed like any other, never reached


def is_loopback(host):
    """Tells whether a host name or address as written means this host only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def own_address(environ, *, name=None, towards=None):
    """Finds the address of this host for workers on several hosts. Sends nothing.

    Args:
      environ: the variables; TFDIST_ADDRESS wins.
      name: what the cluster's description calls this host, if it says.
      towards: a host of the job; the address of the interface that leads to it is taken.

    Returns:
      An address that is not loopback, as text.

    Raises:
      ConfigurationError: none was found.
    """
    if environ.get("TFDIST_ADDRESS", ""):
        return environ["TFDIST_ADDRESS"]
    # Debian maps a host's own name to 127.0.1.1, so each answer is checked, and the default route is the last resort.
    candidates = [_resolve(name)] if name else []
    candidates += [_interface_towards(host) for host in ([towards] if towards else []) + list(_ELSEWHERE)]
    for address in candidates:
        if address and not is_loopback(address):
            return address
    raise ConfigurationError(
        "This host is expected to have an address that other hosts can reach. "
        f"Received: none for name={name!r}, towards={towards!r}. Set TFDIST_ADDRESS to it."
    )


def _resolve(name):
    try:
        return socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError:
        return None


def _interface_towards(host):
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)  # a datagram socket: this looks up the route and no more
            return probe.getsockname()[0]
    except OSError:
        return None
