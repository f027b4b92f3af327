"""Reads checkpoints; every byte is verified, and a damaged one is never taken for a whole one."""

import dataclasses
import os

from absl import logging

from tfdist.checkpoint import encoding, folder
from tfdist.errors import ConfigurationError, CorruptCheckpointError


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
      path: str, its file.
      tensors: dict of str to NumPy array.
      values: dict, what else was written.
    """

    path: str
    tensors: dict
    values: dict


def load(path):
    """Reads a checkpoint and verifies it.

    Args:
      path: str or path: a directory, whose newest checkpoint is read, and the one before it where that is damaged (with a
        warning); or the file of one checkpoint.

    Returns:
      A `Checkpoint`.

    Raises:
      ConfigurationError: there is no checkpoint at all, or it is of a later version.
      CorruptCheckpointError: the file is damaged; of a directory, all are.

    Example:

    ```python
    checkpoint = tfdist.checkpoint.load("checkpoints")
    checkpoint.tensors["weights"], checkpoint.values["step"]
    ```
    """
    path = os.fspath(path)
    if not os.path.isdir(path):
        return _load_file(path)
    damaged = []
    for number in reversed(folder.numbers(path)):
        try:
            return _load_file(folder.path_of(path, number))
        except CorruptCheckpointError as error:
            logging.warning("%s The checkpoint before it is tried.", error)
            damaged.append(error)
        except FileNotFoundError:  # deleted meanwhile by a writer, which has written a newer one
            return load(path)
    if damaged:
        raise CorruptCheckpointError(
            f"A whole checkpoint was expected in {path}. Received: {len(damaged)} of {len(damaged)} are damaged. "
            "Restore the directory from a copy, or begin anew with an empty one."
        ) from damaged[0]
    raise ConfigurationError(
        f"A checkpoint was expected in {path}. Received: none. See `tfdist.checkpoint.latest`, which returns None then."
    )


def verify(path):
    """Reads all bytes of a checkpoint and compares their checksums, one tensor at a time.

    Args:
      path: str or path, the file of a checkpoint.

    Returns:
      dict of each tensor's name to `(shape, dtype)`: a tuple of ints and a str.

    Raises:
      CorruptCheckpointError: it is damaged.
      FileNotFoundError: there is no such file.
    """
    described = {}
    with _opened(os.fspath(path)) as (file, manifest):
        for name, array in encoding.read_tensors(file, manifest):
            described[name] = (array.shape, array.dtype.name)
    return described


def _load_file(path):
    with _opened(path) as (file, manifest):
        return Checkpoint(path, dict(encoding.read_tensors(file, manifest)), manifest["values"])


class _opened:  # noqa: N801 (a context manager, used like `open`)
    """Opens a checkpoint and reads its manifest; says of every damage that is found in which file it is."""

    def __init__(self, path):
        self._path = path

    def __enter__(self):
        self._file = open(self._path, "rb")
        try:
            return self._file, encoding.read_manifest(self._file, os.fstat(self._file.fileno()).st_size)
        except BaseException as error:
            self._file.close()
            self._translate(error)
            raise

    def __exit__(self, kind, error, trace):
        self._file.close()
        self._translate(error)

    def _translate(self, error):
        if isinstance(error, encoding.DamagedError):
            raise CorruptCheckpointError(
                f"A whole checkpoint was expected in {self._path}. Received: {error}. Restore the file from a copy, or delete it."
            ) from error
