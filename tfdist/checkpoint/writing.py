"""Writes a checkpoint so that at any moment there is a whole one."""

import os

from tfdist.checkpoint import disk, encoding, folder
from tfdist.errors import ConfigurationError


def write(directory, tensors, values=None, *, keep=3):
    """Writes a checkpoint into a directory and deletes the oldest.

    Everything goes into one partial file; when that is on the disk it gets its name, and only then older checkpoints are
    deleted. A process may be killed at any moment of it, and the host may lose its power. Several processes may write
    into one directory; numbers are never given twice. It costs S bytes to the disk, two waits for the disk (`fsync`), and
    a CRC-32, S the size of the tensors; blocks until all is done, and has no timeout.

    Args:
      directory: str or path, made where it is missing.
      tensors: dict of str to NumPy array; they must not change meanwhile.
      values: dict fit for JSON, what else belongs to the checkpoint.
      keep: int >= 1, how many checkpoints stay.

    Returns:
      The path of the new checkpoint.

    Raises:
      ConfigurationError: `keep` is not positive, or an array is not one of numbers.
      OSError: the disk is full, or the directory cannot be written to; nothing is left of the checkpoint then.

    Example:

    ```python
    tfdist.checkpoint.write("checkpoints", {"weights": weights}, {"step": 100})
    ```
    """
    directory = os.fspath(directory)
    if keep < 1:
        raise ConfigurationError(f"keep is expected to be at least 1. Received: keep={keep}. Keep the newest.")
    number, descriptor = folder.reserve(directory)
    partial, path = folder.partial_path_of(directory, number), folder.path_of(directory, number)
    try:
        try:
            for piece in encoding.encoded(tensors, values or {}):
                disk.write(descriptor, piece)
            disk.flush(descriptor)
        finally:
            os.close(descriptor)
        disk.rename(partial, path)
    except BaseException:
        disk.remove(partial)
        raise
    disk.flush_folder(directory)
    folder.clean(directory, number, keep)
    return path
