"""Every way to disagree, to be late or to vanish: which error, on which rank, how soon."""

import gc
import os
import socket
import threading
import time

import numpy as np
import pytest

from tfdist.comm import library, local
from tfdist.comm.group import Group
from tfdist.errors import CollectiveTimeoutError, MismatchError, TransportError, WorkerLostError


def run_each(world_size, function, timeout=20.0):
    """Calls function(group) on each rank; returns its exception (or None) and seconds per rank."""
    outcome = [None] * world_size

    def body(group):
        begin, error = time.monotonic(), None
        try:
            with group:
                function(group)
        except Exception as caught:
            error = caught
        outcome[group.rank] = (error, time.monotonic() - begin)

    threads = [threading.Thread(target=body, args=(g,)) for g in local.connect(world_size, timeout=timeout)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    return outcome


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(
    "differ",
    [
        lambda g: g.all_reduce(np.ones(4 if g.rank == 1 else 5, np.float32), name="kernel"),
        lambda g: g.all_reduce(np.ones(4, np.float64 if g.rank == 1 else np.float32), name="kernel"),
        lambda g: g.all_reduce(np.ones(4), "max" if g.rank == 1 else "sum", name="kernel"),
        lambda g: g.broadcast(np.ones(4), root=int(g.rank == 1), name="kernel"),
    ],
    ids=["shape", "dtype", "op", "root"],
)
def test_disagreement_names_both_values_on_every_rank(world_size, differ):
    # A broadcast may end on a rank before the other's frames come; what follows then reports it.
    for error, seconds in run_each(world_size, lambda group: (differ(group), group.barrier())):
        assert isinstance(error, MismatchError), error
        assert "kernel" in str(error) and "rank 1" in str(error)  # and whoever met rank 1 first
        assert seconds < 5


def test_both_shapes_are_in_the_text():
    for error, _ in run_each(2, lambda g: g.all_reduce(np.ones(4 if g.rank == 1 else 5, np.float32), name="w")):
        assert "float32[4]" in str(error) and "float32[5]" in str(error)


@pytest.mark.parametrize("world_size", [2, 4])
def test_an_absent_rank_is_named(world_size):
    release = threading.Event()

    def body(group):
        if group.rank == 1:
            release.wait(10)
        try:
            group.all_reduce(np.ones(8))
        finally:
            release.set()

    for error, seconds in run_each(world_size, body, timeout=2.0):
        assert isinstance(error, CollectiveTimeoutError), error
        assert "rank 1" in str(error) and "has not arrived" in str(error)
        assert "of timeout 2.0 s" in str(error)
        assert seconds < 6


def test_the_timeout_may_be_changed():
    def body(group):
        group.timeout = 0.5
        if group.rank == 0:
            group.barrier()
        time.sleep(1)

    error, seconds = run_each(2, body, timeout=50.0)[0]
    assert isinstance(error, CollectiveTimeoutError) and "of timeout 0.5 s" in str(error)
    assert seconds < 5


def test_a_rank_that_leaves_early_is_named():
    def body(group):
        if group.rank != 1:
            group.all_reduce(np.ones(8), name="the step")

    outcome = run_each(3, body)
    assert outcome[1][0] is None
    for rank in (0, 2):
        assert isinstance(outcome[rank][0], MismatchError)
        assert "rank 1" in str(outcome[rank][0]) and "left the group" in str(outcome[rank][0])
        assert outcome[rank][1] < 5


def test_a_rank_that_fails_tells_why():
    def body(group):
        if group.rank == 1:
            raise KeyError("the data is gone")
        group.all_reduce(np.ones(8))

    outcome = run_each(3, body)
    for rank in (0, 2):
        error = outcome[rank][0]
        assert isinstance(error, WorkerLostError) and error.rank == 1
        assert "rank 1 failed: KeyError: 'the data is gone'" in str(error)


def start_and_wait(group, **fields):
    operation = library.Operation(plan=group.plan("all_reduce"), dtype=1, scale=1.0, elements=4, **fields)
    group.run_native(operation, None, group.timeout)


def test_ranks_stuck_in_different_programs_are_told_apart():
    def body(group):
        start_and_wait(group, channel=100 + group.rank, step=-1, description=f"program {group.rank}".encode())

    for error, seconds in run_each(2, body, timeout=8.0):
        assert isinstance(error, MismatchError), error
        assert "program 0" in str(error) and "program 1" in str(error)
        assert seconds < 8


def test_steps_that_differ_are_a_mismatch():
    def body(group):
        start_and_wait(group, channel=7, step=4 - group.rank, description=b"gradients")

    for error, _ in run_each(2, body):
        assert isinstance(error, MismatchError)
        assert "at step 4" in str(error) and "at step 3" in str(error)


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n" * 8, b"\x00" * 64, b"\xff" * 200])
def test_garbage_on_a_connection_is_refused(garbage):
    mine, theirs = socket.socketpair()
    group = Group(0, 2, [None, [mine]], timeout=10)
    theirs.sendall(garbage)
    begin = time.monotonic()
    with pytest.raises(WorkerLostError, match="not one of ours") as caught:
        group.all_reduce(np.ones(4))
    assert caught.value.rank == 1 and time.monotonic() - begin < 5
    theirs.close()
    group.close()


def test_a_closed_connection_is_seen_at_once():
    mine, theirs = socket.socketpair()
    group = Group(0, 2, [None, [mine]], timeout=30)
    threading.Timer(0.3, theirs.close).start()
    begin = time.monotonic()
    with pytest.raises(WorkerLostError, match="lost rank 1.*connection was closed"):
        group.all_reduce(np.ones(4))
    assert time.monotonic() - begin < 2
    with pytest.raises(WorkerLostError, match="lost rank 1"):  # the first failure stays the answer
        group.barrier()
    group.close()


def test_a_closed_group_says_so():
    groups = local.connect(2)
    for group in groups:
        group.close()
        group.close()
    with pytest.raises(TransportError, match="group was closed"):
        groups[0].barrier()


def test_no_thread_or_descriptor_is_left():
    local.run(3, lambda group: group.barrier())
    gc.collect()  # groups of earlier tests, in the tracebacks of their exceptions
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        local.run(3, lambda group: group.barrier())
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
