"""Which all-reduce for which size: the one that the cost model predicts to be the fastest.

Every rank that has the same `Topology` and `Rates` (rank 0's are broadcast) makes the same choice: nothing else enters.
"""

import functools

from tfdist.collectives.rates import fixed_seconds, seconds
from tfdist.collectives.registry import ALL_REDUCE
from tfdist.errors import ConfigurationError

# The model is no better than this. Of what it cannot tell apart the first in `ALL_REDUCE` is taken, which starts with the most
# predictable: in a ring a link carries one stream, while in `direct` many may meet at one host and lose packets there.
_INDISTINCT = 1.05

SMALLEST_BUCKET_BYTES, LARGEST_BUCKET_BYTES = 1 << 18, 1 << 24
_FIXED_FRACTION = 0.1


def check(name):
    """Returns the name of an all-reduce algorithm.

    Raises:
      ConfigurationError: there is none of that name.
    """
    if name not in ALL_REDUCE:
        raise ConfigurationError(
            f"algorithm is expected to be one of {', '.join(ALL_REDUCE)}. Received: algorithm={name!r}. "
            "Pass one of these, or none to have the fastest chosen."
        )
    return name


def predict(name, topology, rates, num_bytes):
    """Returns the seconds that an all-reduce of `num_bytes` bytes is predicted to take by the algorithm `name`."""
    cost = _cost_of_a_byte(check(name), topology)
    fixed = fixed_seconds(cost, rates)
    return fixed + (seconds(cost, rates) - fixed) * num_bytes


def choose(topology, rates, num_bytes, name=None):
    """Returns the name of the fastest all-reduce for `num_bytes` bytes; within 5 %, the first in `ALL_REDUCE`.

    Args:
      topology: the `Topology`.
      rates: the `Rates`, equal on all ranks.
      num_bytes: int >= 0, of the array.
      name: str, an algorithm that is to be used whatever the size; None: the fastest.

    Raises:
      ConfigurationError: there is no algorithm `name`.
    """
    if name is not None:
        return check(name)
    predicted = {name: predict(name, topology, rates, num_bytes) for name in ALL_REDUCE}
    fastest = min(predicted.values())
    return next(name for name in ALL_REDUCE if predicted[name] <= fastest * _INDISTINCT)


def crossovers(topology, rates, largest_bytes=1 << 30):
    """Returns [(0, name), (bytes, name), ...]: the choice for arrays of that many bytes and more, up to `largest_bytes`.

    Tries sizes twice as large each time; where two in a row differ, it looks for the byte in between.
    """
    found, low = [(0, choose(topology, rates, 0))], 0
    while low < largest_bytes:
        high = min(max(2 * low, 1), largest_bytes)
        name, end = choose(topology, rates, high), high
        if name != found[-1][1]:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if choose(topology, rates, middle) != found[-1][1] else (middle, high)
            found.append((high, choose(topology, rates, high)))
            end = high
        low = end
    return found


def bucket_bytes(topology, rates, name=None):
    """Returns the bytes of a bucket of gradients, a power of two from 256 KiB to 16 MiB.

    A bucket can be reduced while later gradients are still computed: the smaller, the sooner it starts. But each costs its
    latencies. This is the smallest at which they are at most a tenth of its time. Below 256 KiB costs that the model
    does not know (TensorFlow's operations, waking threads) would take over; beyond 16 MiB little is left to overlap.

    Args:
      topology: the `Topology`.
      rates: the `Rates`, equal on all ranks.
      name: str or None, as in `choose`.
    """
    size = SMALLEST_BUCKET_BYTES
    while size < LARGEST_BUCKET_BYTES:
        chosen = choose(topology, rates, size, name)
        fixed = fixed_seconds(_cost_of_a_byte(chosen, topology), rates)
        if fixed <= _FIXED_FRACTION * predict(chosen, topology, rates, size):
            break
        size *= 2
    return size


@functools.lru_cache(maxsize=256)
def _cost_of_a_byte(name, topology):
    """Costs are counts of messages, and of bytes in proportion to the array's: one evaluation serves all sizes."""
    return ALL_REDUCE[name].cost(topology, 1.0)
