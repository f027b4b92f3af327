"""Which server keeps what: shards balanced by bytes, large tensors split between rows, small ones kept whole.

Tensors that make up more than a quarter of a server's fair share are cut into one part a server; the others go, the
largest first, to the server with the fewest bytes (longest processing time first: Graham 1969, at most 4/3 of the best
balance).
"""

import dataclasses
import math

_NEVER_SPLIT_BYTES = 1 << 14


@dataclasses.dataclass(frozen=True)
class Part:
    """A stretch of a tensor.

    Args:
      server: int, who keeps it.
      begin: int, its first element.
      elements: int.
    """

    server: int
    begin: int
    elements: int


def row_elements(shape):
    """Returns the number of elements of a row, what never is cut: of a vector each element is one."""
    return max(1, math.prod(shape[1:]))


def place(shapes, item_bytes, num_servers, *, may_split=True):
    """Returns for each tensor the list of its `Part`s, in order.

    Args:
      shapes: list of tuples of ints.
      item_bytes: list of ints, the bytes of an element of each tensor.
      num_servers: int >= 1.
      may_split: bool; False where the update rule looks at whole tensors.
    """
    sizes = [math.prod(shape) * item for shape, item in zip(shapes, item_bytes)]
    fair = sum(sizes) / num_servers
    loads = [0] * num_servers
    parts = [None] * len(shapes)
    for i in sorted(range(len(shapes)), key=lambda i: (-sizes[i], i)):
        rows = shapes[i][0] if shapes[i] else 1
        is_large = sizes[i] > max(fair / 4, _NEVER_SPLIT_BYTES)
        if may_split and num_servers > 1 and is_large and rows >= num_servers:
            parts[i] = _split(rows, row_elements(shapes[i]), num_servers)
        else:
            server = min(range(num_servers), key=lambda s: (loads[s], s))
            parts[i] = [Part(server, 0, math.prod(shapes[i]))]
        for part in parts[i]:
            loads[part.server] += part.elements * item_bytes[i]
    return parts


def _split(rows, width, num_servers):
    ends = [rows * i // num_servers for i in range(num_servers + 1)]
    return [Part(s, ends[s] * width, (ends[s + 1] - ends[s]) * width) for s in range(num_servers)]
