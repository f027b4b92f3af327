"""What the tests of all-reduces share: topologies, plans of all ranks, and sums written down as trees."""

from tfdist.collectives import ALL_REDUCE, Topology

WORLD_SIZES = [*range(1, 18), 64]

# Contiguous and not, even and uneven, one host and one rank a host.
HOSTS = [
    ((0, 1, 2, 3),),
    ((0,), (1,), (2,), (3,)),
    ((0, 1), (2, 3)),
    ((0, 2), (1, 3)),
    ((3, 0), (1, 2)),
    ((0, 1, 2), (3,)),
    ((0,), (1, 2)),
    ((0, 1, 2), (3, 4), (5,)),
    ((5,), (0, 6, 3), (1, 2, 4), (7, 8)),
    ((0, 1, 2, 3), (4, 5, 6, 7)),
    tuple(tuple(range(8 * host, 8 * host + 8)) for host in range(8)),
    tuple(tuple(range(host, 17, 5)) for host in range(5)),
]


def one_host(world_size):
    return Topology((range(world_size),))


TOPOLOGIES = [*map(one_host, WORLD_SIZES), *map(Topology, HOSTS)]


def all_reduce_plans(name, topology):
    """Returns (one list of steps per rank, the number of chunks)."""
    algorithm, options = ALL_REDUCE[name], ALL_REDUCE[name].options(topology)
    steps = [list(algorithm.steps(rank, topology.world_size, **options)) for rank in range(topology.world_size)]
    return steps, algorithm.num_chunks(topology.world_size, **options)


class Trees:
    """Sums as trees of who was added to whom: equal up to commutation, and only then, means equal numbers.

    A tree is the number of a row here; the row holds (kind, parts), of which a sum's two are sorted.
    """

    def __init__(self):
        self.rows = []
        self._numbers = {}

    def leaf(self, rank, chunk):
        return self._number(("leaf", rank, chunk))

    def add(self, left, right):
        return self._number(("sum", *sorted((left, right))))

    def divide(self, tree):
        return self._number(("mean", tree))

    def round(self, tree):
        return tree if self.rows[tree][0] == "rounded" else self._number(("rounded", tree))

    def leaves(self, tree):
        """Returns the sorted (rank, chunk) pairs in a tree, as often as they stand there."""
        kind, *parts = self.rows[tree]
        return [tuple(parts)] if kind == "leaf" else sorted(leaf for part in parts for leaf in self.leaves(part))

    def means(self, tree):
        """Returns how often each leaf was divided; a mean inside of a sum counts."""
        kind, *parts = self.rows[tree]
        return 0 if kind == "leaf" else (kind == "mean") + max(self.means(part) for part in parts)

    def _number(self, row):
        if row not in self._numbers:
            self._numbers[row] = len(self.rows)
            self.rows.append(row)
        return self._numbers[row]
