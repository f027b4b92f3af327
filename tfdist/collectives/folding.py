"""What the exchange algorithms do where P is no power of two: they run on a core of 2^k ranks.

Of the first 2 (P - 2^k) ranks each odd one is an extra: it adds its array to that of the even rank before it, and is out.
Thakur, Rabenseifner & Gropp (2005) send it the result at the end. Here it listens in instead: whoever
sends the last operands or results to a core rank sends them to that rank's extra as well. That is one latency less, in
shared memory no more bytes written, and where the wire rounds (bf16, f16) the extra computes the same bits as the core.
"""


def core_ranks(world_size):
    """Returns the ranks that take part in the exchanges, in order: the largest power of two not over `world_size`."""
    num_extras = world_size - core_size(world_size)
    return [*range(0, 2 * num_extras, 2), *range(2 * num_extras, world_size)]


def core_size(world_size):
    """Returns the largest power of two not over `world_size` (>= 1)."""
    return 1 << (world_size.bit_length() - 1)


def extras(core_rank, world_size):
    """Returns the ranks that were folded into `core_rank`: one or none."""
    return [core_rank + 1] if core_rank < 2 * (world_size - core_size(world_size)) else []


def distances(world_size):
    """Returns how far apart the partners of each exchange are, in positions of the core: 1, 2, 4, ..., nearest first."""
    return [1 << k for k in range(core_size(world_size).bit_length() - 1)]
