"""Writes checkpoints and is killed (SIGKILL) at every operation on the file system in turn, and in the middle of every write.

    python killed_writer.py DIRECTORY

For each point k a child process writes into DIRECTORY/k until it comes to its k-th point. Prints one line of JSON a point:
[how the child ended, how many checkpoints it had finished].
"""

import itertools
import json
import os
import signal
import sys

import numpy as np

from tfdist import checkpoint
from tfdist.checkpoint import disk

NUM_CHECKPOINTS = 6
OPERATIONS = ("create", "write", "flush", "rename", "flush_folder", "remove")


def tensors(number):
    """Returns what checkpoint `number` holds: every element tells which one it is."""
    return {f"tensor {i}": np.arange(10 * i + 3) + 1000.0 * number for i in range(5)}


class Killer:
    """Stands before each operation of `disk` and ends the process when the count of points is there.

    Args:
      point: int, at which one.
    """

    def __init__(self, point):
        self._left = point
        for name in OPERATIONS:
            setattr(disk, name, self._before(name, getattr(disk, name)))

    def _before(self, name, operation):
        def stand_in(*arguments):
            self._pass()
            if name == "write":
                descriptor, data = arguments
                half = len(data) // 2
                operation(descriptor, data[:half])
                self._pass()
                return operation(descriptor, data[half:])
            return operation(*arguments)

        return stand_in

    def _pass(self):
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1


def child(directory, point, pipe):
    Killer(point)
    for number in range(NUM_CHECKPOINTS):
        checkpoint.write(directory, tensors(number), {"number": number}, keep=2)
        os.write(pipe, b".")
    os._exit(0)


def main(directory):
    for point in itertools.count():
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(os.path.join(directory, str(point)), point, writer)
        os.close(writer)
        _, status = os.waitpid(pid, 0)
        with open(reader, "rb") as file:
            sys.stdout.write(json.dumps([status, len(file.read())]) + "\n")
        if status == 0:
            return


if __name__ == "__main__":
    main(sys.argv[1])
