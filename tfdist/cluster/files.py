"""Files of one user that other users of the host can neither read nor replace."""

import os
import stat
import tempfile

from tfdist.errors import ConfigurationError


def runtime_directory(environ):
    """Returns the user's directory for short-lived files, made with mode 0700 where it is not there yet."""
    base = environ.get("XDG_RUNTIME_DIR", "")
    if base and os.path.isdir(base) and os.access(base, os.W_OK):
        return private_directory(os.path.join(base, "tfdist"))
    return private_directory(os.path.join(tempfile.gettempdir(), f"tfdist-{os.geteuid()}"))


def state_directory(environ):
    """Returns the user's directory for what outlives a job."""
    base = environ.get("XDG_STATE_HOME", "") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return private_directory(os.path.join(base, "tfdist"))


def private_directory(path):
    """Makes a directory of mode 0700, or checks that the one there is ours.

    Raises:
      ConfigurationError: it cannot be made, or belongs to somebody else or is open to others.
    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        status = os.lstat(path)
    except OSError as error:
        raise ConfigurationError(
            f"{path} is expected to be a directory that we can make. Received: {error}. "
            "Set TFDIST_SECRET, and HOME or XDG_RUNTIME_DIR to a directory that can be written."
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise _not_private(path, status)
    _check_private(path, status)
    return path


def read_private(path):
    """Returns the bytes of a file of ours, or None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(
            f"{path} is expected to be a file that we can read. Received: {error}. Remove it."
        ) from error
    with open(descriptor, "rb") as file:
        _check_private(path, os.fstat(descriptor))
        return file.read(1 << 16)


def write_private(path, content, *, replace):
    """Writes a file of mode 0600 that appears whole or not at all.

    Args:
      path: the file, in a directory of ours.
      content: bytes.
      replace: bool; False leaves a file that is already there as it is.
    """
    descriptor, draft = tempfile.mkstemp(prefix=".", dir=os.path.dirname(path))  # mode 0600, O_EXCL
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        if replace:
            os.replace(draft, path)
            return
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        os.unlink(draft)
    except BaseException:
        os.unlink(draft)
        raise


def _check_private(path, status):
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise _not_private(path, status)


def _not_private(path, status):
    return ConfigurationError(
        f"{path} is expected to belong to you and to be closed to others. "
        f"Received: owner={status.st_uid}, mode={stat.filemode(status.st_mode)}. Remove it, or set TFDIST_SECRET."
    )
