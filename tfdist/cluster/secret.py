"""Where the job's secret comes from when `tfdist run` has not drawn one."""

import os
import secrets

from tfdist.cluster.files import read_private, state_directory, write_private
from tfdist.errors import ConfigurationError

_HOW = (
    "Draw one by `python -c 'import secrets; print(secrets.token_hex(32))'` and set TFDIST_SECRET to it, or "
    "TFDIST_SECRET_FILE to a file that holds it, the same on all ranks."
)


def given_secret(environ):
    """Returns the secret that the user gave, bytes, or None.

    Raises:
      ConfigurationError: TFDIST_SECRET and TFDIST_SECRET_FILE are both set, or the file cannot be used.
    """
    path, text = environ.get("TFDIST_SECRET_FILE", ""), environ.get("TFDIST_SECRET", "")
    if path and text:
        raise ConfigurationError(
            "TFDIST_SECRET and TFDIST_SECRET_FILE are expected not to be set both. "
            f"Received: TFDIST_SECRET=(hidden), TFDIST_SECRET_FILE={path!r}. Unset one."
        )
    if not path:
        return os.fsencode(text) or None
    try:
        with open(path, "rb") as file:
            secret = file.read(1 << 16).strip()
    except OSError as error:
        raise ConfigurationError(
            "TFDIST_SECRET_FILE is expected to name a file that can be read. "
            f"Received: TFDIST_SECRET_FILE={path!r} ({error.strerror}). {_HOW}"
        ) from error
    if not secret:
        raise ConfigurationError(
            "TFDIST_SECRET_FILE is expected to name a file with a secret in it. "
            f"Received: TFDIST_SECRET_FILE={path!r}, an empty file. {_HOW}"
        )
    return secret


def find_secret(environ, *, one_host, source):
    """Returns the job's secret, bytes.

    Args:
      environ: the variables.
      one_host: bool, whether all workers run on this host. Then a secret kept for this user will do.
      source: what described the cluster, for the error.

    Raises:
      ConfigurationError: there are several hosts and the user gave no secret.
    """
    secret = given_secret(environ)
    if secret is not None:
        return secret
    if not one_host:
        raise ConfigurationError(
            f"TFDIST_SECRET or TFDIST_SECRET_FILE is expected when {source} puts workers on several hosts. "
            f"Received: neither. {_HOW}"
        )
    return _secret_of_this_user(environ)


def _secret_of_this_user(environ):
    path = os.path.join(state_directory(environ), "secret")
    if read_private(path) is None:
        # Several ranks may come here at once: one file wins, and all read that one.
        write_private(path, secrets.token_hex(32).encode(), replace=False)
    secret = read_private(path)
    if not secret:
        raise ConfigurationError(f"{path} is expected to hold a secret. Received: an empty file. Remove it.")
    return secret
