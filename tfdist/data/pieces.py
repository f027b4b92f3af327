"""How an epoch is cut into pieces, runs of consecutive batches.

Pieces shrink as the epoch goes on, which needs few requests and lets all workers end within about one batch of each other
(guided self-scheduling: Polychronopoulos and Kuck, "Guided Self-Scheduling", IEEE Transactions on Computers C-36, 1987).
"""

# Guided self-scheduling takes a fraction 1/P of what is left. A worker 8 times slower than the others must not hold more
# than its share with its first piece already.
_FRACTION = 8
_MOST_BATCHES = 16
_BATCHES_OF_UNKNOWN = 2  # where the length of the epoch is not known


def pieces(num_batches, world_size):
    """Returns the table of pieces, the same on all workers.

    One of P workers takes `ceil(remaining / (8 * P))` batches, from 1 to 16: about `8 * P * ln(N / (8 * P))` pieces for
    the first `N - 8 * P` batches and one for each of the others.

    Args:
      num_batches: int >= 0, of an epoch.
      world_size: int >= 1.

    Returns:
      A list of `(first batch, number of batches)` that covers `0 .. num_batches - 1` in order.
    """
    table, first = [], 0
    while first < num_batches:
        count = min(_MOST_BATCHES, -(-(num_batches - first) // (_FRACTION * world_size)))
        table.append((first, count))
        first += count
    return table


def piece(table, number):
    """Returns piece `number`, `(first batch, number of batches)`: no batch beyond the end of the table.

    Args:
      table: from `pieces`, or None where the length of the epoch is not known: pieces may then lie beyond its end.
      number: int >= 0.
    """
    if table is None:
        return number * _BATCHES_OF_UNKNOWN, _BATCHES_OF_UNKNOWN
    return table[number] if number < len(table) else (0, 0)
