"""The vocabulary of plans, and their reference meaning.

A collective algorithm is a function `steps(rank, world_size, ...)` that yields what one rank does, in order, to its
numbered chunks. Where the chunks lie and how long they are is the caller's business; messages between two ranks match
in order. Sends of one chunk that follow each other directly are a multicast: where the peers share memory with the
sender, it is written once. The native engine runs plans over shared memory and sockets; `interpret` below runs them on any
Python values, which is how tests, the simulator and the in-process ring use them.
"""

import dataclasses
import enum
from collections import deque


class Kind(enum.IntEnum):
    """What a step does; the numbers are the native core's."""

    SEND = 0
    RECEIVE = 1
    RECEIVE_REDUCE = 2
    COPY = 3
    RECEIVE_REDUCE_LAST = 4


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of one rank.

    Args:
      kind: what happens.
      chunk: the chunk that is sent, written or reduced into.
      peer: the other rank; -1 for a copy.
      source: the chunk a copy reads; -1 otherwise.
    """

    kind: Kind
    chunk: int
    peer: int = -1
    source: int = -1


def send(chunk, peer):
    """Sends `chunk` to `peer`."""
    return Step(Kind.SEND, chunk, peer)


def receive(chunk, peer):
    """Overwrites `chunk` with the next message of `peer`."""
    return Step(Kind.RECEIVE, chunk, peer)


def receive_reduce(chunk, peer):
    """Reduces the next message of `peer` into `chunk`."""
    return Step(Kind.RECEIVE_REDUCE, chunk, peer)


def receive_reduce_last(chunk, peer):
    """As `receive_reduce`; all ranks are then in it, so that a mean is divided here, once."""
    return Step(Kind.RECEIVE_REDUCE_LAST, chunk, peer)


def copy(chunk, source):
    """Copies the chunk `source` onto `chunk`."""
    return Step(Kind.COPY, chunk, source=source)


class PlanError(ValueError):
    """A plan waits for itself, or leaves a message unread."""


def interpret(plans, chunks, reduce, finish=None, wire=None):
    """Runs the plans of all ranks on Python values.

    Values are replaced, never changed in place, so a sent value needs no copy.

    Args:
      plans: one list of `Step` per rank.
      chunks: one list of values per rank; changed to the result.
      reduce: function of (own value, received value) that returns their reduction.
      finish: function applied to a value once all ranks are in it, or None.
      wire: function applied to a value as it is sent, on the sender too (rounding to a shorter dtype), or None.

    Returns:
      `chunks`.

    Raises:
      PlanError: no rank can move, or messages are left over.
    """
    in_flight = {}
    position = [0] * len(plans)
    moved = True
    while moved:
        moved = False
        for rank, steps in enumerate(plans):
            while position[rank] < len(steps):
                if not _execute(steps[position[rank]], rank, chunks[rank], in_flight, reduce, finish, wire):
                    break
                position[rank] += 1
                moved = True
    stuck = [rank for rank, steps in enumerate(plans) if position[rank] < len(steps)]
    if stuck:
        raise PlanError(f"every rank waits. Received: stuck={ {r: plans[r][position[r]] for r in stuck} }")
    unread = [pair for pair, queue in in_flight.items() if queue]
    if unread:
        raise PlanError(f"messages were sent and never received. Received: (sender, receiver)={unread}")
    return chunks


def _execute(step, rank, own, in_flight, reduce, finish, wire):
    """Does one step if it can be done now; says whether it could."""
    if step.kind == Kind.SEND:
        if wire is not None:
            own[step.chunk] = wire(own[step.chunk])
        in_flight.setdefault((rank, step.peer), deque()).append(own[step.chunk])
        return True
    if step.kind == Kind.COPY:
        own[step.chunk] = own[step.source]
        return True
    queue = in_flight.get((step.peer, rank))
    if not queue:
        return False
    message = queue.popleft()
    if step.kind != Kind.RECEIVE:
        message = reduce(own[step.chunk], message)
    if step.kind == Kind.RECEIVE_REDUCE_LAST and finish is not None:
        message = finish(message)
    own[step.chunk] = message
    return True
