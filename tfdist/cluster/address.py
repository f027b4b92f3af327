"""Addresses are written "host:port", with an IPv6 host in brackets."""

from tfdist.errors import ConfigurationError


def format_address(host, port):
    """Joins a host and a port: `("::1", 80)` becomes `"[::1]:80"`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(address, name="address"):
    """Splits "host:port".

    Args:
      address: the text, such as `"10.0.0.4:2222"` or `"[::1]:2222"`.
      name: what the user calls it (a variable or an option), for the error.

    Returns:
      `(host, port)`, the port an int in 1..65535.

    Raises:
      ConfigurationError: it is not of this form.
    """
    host, separator, port = str(address).rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    well_formed = separator and (bracketed or ":" not in host) and host.strip("[]")
    if not (well_formed and port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
        raise ConfigurationError(
            f"{name} is expected to be host:port with a port from 1 to 65535. Received: {name}={address!r}. "
            'Write it like "10.0.0.4:2222" or "[::1]:2222".'
        )
    return host.strip("[]"), int(port)
