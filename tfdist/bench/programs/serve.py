"""The life of one rank of an all-reduce benchmark: verifies, times, and sleeps on a socket in between.

The programs beside this file are started by path, so that a peer may live in an interpreter without tfdist; this needs
NumPy only. The coordinator (`tfdist.bench.crew`) says what to do, one JSON object a line.
"""

import functools
import gc
import hashlib
import json
import os
import socket
import time
import traceback

import numpy as np

_BARRIER_SECONDS = 60.0
_PAGE = 4096
_PAGE_OFFSET = 64
_CHUNK = 1 << 16  # elements that are filled or checked at a time: verification shall not count in the peak memory
_PERIOD = 4093  # a prime; with at most 64 ranks every partial sum stays below 2^24, exact in float32
_RANK_STRIDE = 4096
_SCALE = (
    2.0**-10
)  # of the same numbers where the sums are rounded on the way: within float16's range, and exact in float32


def task():
    """Returns what the coordinator told this crew at its start: a dict."""
    return json.loads(os.environ["TFDIST_BENCH"])


def pin(rank):
    """Restricts this process, and what it starts from now on, to its share of the cores; call it before imports."""
    cores = task()["cores"][rank]
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def repeat(call):
    """Returns a function that calls `call` so many times."""

    def run(iterations):
        for _ in range(iterations):
            call()

    return run


class Barrier:
    """Ranks of this machine leave it within microseconds: each spins over the counters of all.

    Args:
      path: of a file of 64 zero bytes per rank, shared by the ranks.
    """

    def __init__(self, path, rank, world_size):
        self._counters = np.memmap(path, np.int64, "r+", shape=(world_size, 8))[:, 0]
        self._rank = rank
        self._count = 0

    def wait(self):
        self._count += 1
        self._counters[self._rank] = self._count
        deadline = time.monotonic() + _BARRIER_SECONDS
        while self._counters.min() < self._count:
            os.sched_yield()
            if time.monotonic() > deadline:
                raise TimeoutError(f"another rank did not come to the barrier within {_BARRIER_SECONDS:g} s")


def fill(array, rank, scale=1.0):
    """Writes numbers that differ between ranks and between neighbouring elements: scale (i mod 4093 + 4096 rank)."""
    for begin in range(0, array.size, _CHUNK):
        part = array[begin : begin + _CHUNK]
        part[:] = (np.arange(begin, begin + part.size) % _PERIOD + _RANK_STRIDE * rank) * scale


def check(array, world_size, scale=1.0, tolerance=0.0):
    """Compares every element with the sum over all ranks of what `fill` wrote.

    Args:
      array: float32 [n].
      world_size: int.
      scale: as for `fill`.
      tolerance: float, allowed deviation as a share of the expected sum; 0 where the sum is exact.

    Returns:
      None, or one line about the first wrong element.
    """
    for begin in range(0, array.size, _CHUNK):
        part = array[begin : begin + _CHUNK]
        expected = np.arange(begin, begin + part.size) % _PERIOD * float(world_size)
        expected = scale * (expected + _RANK_STRIDE * world_size * (world_size - 1) // 2)
        wrong = ~(np.abs(part - expected) <= tolerance * expected)
        if wrong.any():
            first = int(wrong.argmax())
            return (
                f"element {begin + first} of {array.size} was expected to be {expected[first]:g}. "
                f"Received: {part[first]:g}. The sum is wrong."
            )
    return None


def peak_memory_mb():
    """Returns the peak resident memory of this process since the last `reset_peak_memory`, in MB (10^6 bytes)."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            lines = [line.split() for line in file if line.startswith("VmHWM:")]
        return int(lines[0][1]) * 1024 / 1e6
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes


def reset_peak_memory():
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:  # then the peak is that of the whole life
        pass


def allocate(num_elements):
    """Returns a float32 array 64 bytes after the beginning of a page, where TensorFlow's allocator puts a large one.

    NumPy's own lie 16 bytes after it, and there some processors copy from and to a socket at less than half the speed.
    """
    raw = np.zeros(4 * num_elements + 2 * _PAGE, np.uint8)
    begin = -raw.ctypes.data % _PAGE + _PAGE_OFFSET
    return raw[begin : begin + 4 * num_elements].view(np.float32)


class Rank:
    """What the coordinator can ask of a rank; each public method is a message.

    Args:
      rank: int.
      world_size: int.
      prepare: from a float32 array to a function `run(iterations)` that reduces it in place so many times.
      barrier: a `Barrier`.
      tolerance: as for `check`; None leaves the sums unchecked (a probe that only moves bytes).
    """

    def __init__(self, rank, world_size, prepare, barrier, tolerance):
        self._rank, self._world_size = rank, world_size
        self._prepare, self._barrier, self._tolerance = prepare, barrier, tolerance
        self._array = self._run = None

    def prepare(self, num_bytes):
        """Allocates the buffer and verifies two sums; returns a digest of their bits."""
        reset_peak_memory()
        self._array = allocate(num_bytes // 4)
        self._array.fill(1)  # touched: no page fault is timed
        self._run = self._prepare(self._array)
        digest = hashlib.blake2b(digest_size=8)
        scale = _SCALE if self._tolerance else 1.0
        for _ in range(2 if self._tolerance is not None else 0):
            fill(self._array, self._rank, scale)
            self._run(1)
            problem = check(self._array, self._world_size, scale, self._tolerance)
            if problem:
                return {"wrong": problem}
            digest.update(self._array)
        self._array.fill(0)  # sums of zeros stay finite
        return {"digest": digest.hexdigest()}

    def measure(self, warmup, iterations, blocks):
        """Times `blocks` blocks of `iterations` reductions, each after a barrier; returns seconds per reduction."""
        self._barrier.wait()
        self._run(warmup)
        seconds = []
        for _ in range(blocks):
            self._barrier.wait()
            begin = time.perf_counter()
            self._run(iterations)
            seconds.append((time.perf_counter() - begin) / iterations)
        return {"seconds": seconds}

    def release(self):
        """Frees the buffer; returns the peak memory since `prepare`, in MB."""
        self._array = self._run = None
        gc.collect()
        return {"rss_mb": peak_memory_mb()}


def serve(rank, world_size, prepare, tolerance=0.0):
    """Does what the coordinator asks until it hangs up; see `Rank` for the arguments."""
    folder = task()["folder"]
    barrier = Barrier(os.path.join(folder, "barrier"), rank, world_size)
    answer(rank, Rank(rank, world_size, prepare, barrier, tolerance))


def answer(rank, target):
    """Calls the methods of `target` that the coordinator's lines name, and sends back what they return."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.path.join(task()["folder"], "socket"))
        lines = connection.makefile("rw", encoding="utf-8")
        _send(lines, {"rank": rank, "pid": os.getpid()})
        gc.disable()  # a collection would hit some iterations
        for line in lines:
            message = json.loads(line)
            method = functools.partial(getattr(target, message.pop("do")), **message)
            try:
                reply = method()
            except Exception as error:  # told to the coordinator, whatever it is; the traceback goes to the log
                traceback.print_exc()
                reply = {"error": f"{type(error).__name__}: {error}"}
            _send(lines, reply)


def _send(lines, message):
    lines.write(json.dumps(message) + "\n")
    lines.flush()
