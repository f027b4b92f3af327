"""What writing a checkpoint does to the file system, operation by operation: tests end the process at each of them."""

import contextlib
import os

_WRITE_BYTES = 16 << 20  # a call for less than all: a signal is seen between two of them


def create(path):
    """Returns a descriptor of a new file; raises FileExistsError where there is one already."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def write(descriptor, data):
    """Writes all of a bytes-like object."""
    left = memoryview(data).cast("B")
    while left.nbytes:
        left = left[os.write(descriptor, left[:_WRITE_BYTES]) :]


def flush(descriptor):
    """Waits until what was written is on the disk."""
    os.fsync(descriptor)


def rename(path, new_path):
    """Gives a file another name at once: at any moment it has one of the two."""
    os.replace(path, new_path)


def flush_folder(path):
    """Waits until names that have changed in a folder are on the disk, where the file system can do that."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path):
    """Deletes a file; one that is gone already is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
