"""Broadcast along a chain: every rank forwards what it has received so far, so that long messages stream.

Costs S bytes per link and P - 1 latencies; for messages of many segments all links are busy at once, and the time is
that of one transfer.
"""

from tfdist.collectives.plan import receive, send


def broadcast(rank, world_size, root=0):
    """Chunk 0 of `root` ends on every rank."""
    position = (rank - root) % world_size
    if position > 0:
        yield receive(0, (rank - 1) % world_size)
    if position < world_size - 1:
        yield send(0, (rank + 1) % world_size)
