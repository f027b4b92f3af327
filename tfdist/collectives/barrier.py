"""Dissemination barrier: after round k every rank has heard, directly or not, from 2^(k+1) ranks.

Hensgen, Finkel & Manber, "Two algorithms for barrier synchronization" (1988). Costs ceil(log2 P) one-byte messages.
"""

from tfdist.collectives.plan import copy, receive, send


def barrier(rank, world_size):
    """Nobody leaves before everybody has entered. Takes two chunks of one byte; their contents do not matter."""
    distance = 1
    while distance < world_size:
        yield send(0, (rank + distance) % world_size)
        yield receive(1, (rank - distance) % world_size)
        yield copy(0, 1)  # so that the next round is sent only after this one was heard
        distance *= 2
