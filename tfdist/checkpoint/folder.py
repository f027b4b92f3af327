"""The files of a checkpoint directory: their numbers, which are whole, and which may go.

checkpoint-00000012.tfdist           number 12, whole: it got this name when all of it was on the disk
.checkpoint-00000013.tfdist.partial  being written, or left behind by a process that was killed
"""

import os
import re

from tfdist.checkpoint import disk

_WHOLE = re.compile(r"checkpoint-(\d{8,18})\.tfdist")
_PARTIAL = re.compile(r"\.checkpoint-(\d{8,18})\.tfdist\.partial")


def path_of(directory, number):
    """Returns the path of the whole checkpoint of that number."""
    return os.path.join(directory, f"checkpoint-{number:08d}.tfdist")


def partial_path_of(directory, number):
    """Returns the path under which that checkpoint is written."""
    return os.path.join(directory, f".checkpoint-{number:08d}.tfdist.partial")


def numbers(directory):
    """Returns the numbers of the whole checkpoints of a directory, ascending; none where there is no directory."""
    return _numbers(directory, _WHOLE)


def partial_numbers(directory):
    """Returns the numbers of those whose writing has begun and not ended, ascending."""
    return _numbers(directory, _PARTIAL)


def latest(directory):
    """Returns the path of the newest checkpoint of a directory, or None where there is none.

    Only whole checkpoints count; whether a byte of it has been damaged since is found by `verify` and `load`.

    Args:
      directory: str or path.
    """
    known = numbers(directory)
    return path_of(directory, known[-1]) if known else None


def reserve(directory):
    """Begins a checkpoint with a number higher than any other's.

    A number belongs to one writer, whoever else writes here (a worker that was excluded and has not noticed yet).

    Returns:
      `(number, descriptor)`; the descriptor is of the partial file.
    """
    os.makedirs(directory, exist_ok=True)
    number = 1 + max([0, *numbers(directory), *partial_numbers(directory)])
    while True:
        try:
            descriptor = disk.create(partial_path_of(directory, number))
        except FileExistsError:
            number += 1
            continue
        if not os.path.exists(path_of(directory, number)):
            return number, descriptor
        os.close(descriptor)  # somebody has begun and finished it since we looked
        disk.remove(partial_path_of(directory, number))
        number += 1


def clean(directory, number, keep):
    """Deletes what checkpoint `number`, which is whole, makes superfluous: older ones but `keep` - 1, and older partial ones."""
    for old in [n for n in numbers(directory) if n <= number][:-keep]:
        disk.remove(path_of(directory, old))
    for old in [n for n in partial_numbers(directory) if n < number]:
        disk.remove(partial_path_of(directory, old))


def _numbers(directory, pattern):
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(int(found[1]) for found in map(pattern.fullmatch, names) if found)
