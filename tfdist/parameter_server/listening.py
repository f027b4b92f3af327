"""A socket at which a parameter server listens."""

import socket

from tfdist.errors import ConfigurationError


def listen(host, port):
    """Returns a listening socket; port 0 takes a free one. Raises ConfigurationError where that cannot be."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"An address of this host with a free port was expected. Received: host={host!r}, port={port}: {error}. "
            "Choose another port, or 0 for any."
        ) from error
    return listener
