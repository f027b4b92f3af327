"""Which plan a collective of a group runs: the all-reduce chosen by size, every plan loaded into the native core once."""

import bisect
import ctypes
import dataclasses
import threading

import numpy as np

from tfdist.collectives import ALGORITHMS, ALL_REDUCE
from tfdist.collectives.choose import bucket_bytes, check, crossovers
from tfdist.collectives.rates import Rates, default_rates
from tfdist.collectives.striping import striped
from tfdist.comm import library
from tfdist.errors import ConfigurationError

_UNKNOWN_BYTES = 1 << 20
_STRIPED_BYTES = 1 << 18  # below it more messages cost more than more sockets gain
_EXPECTED_CHOICE = (
    "choice is expected to hold rates, crossovers ([bytes, algorithm], ascending from 0 bytes on) and bucket_bytes > 0. "
    "Received: choice={}{}. Save it again by measuring anew."
)
_choices = {}
_choices_lock = threading.Lock()  # guards _choices; ranks that are threads wait for one of them to compute it


@dataclasses.dataclass(frozen=True)
class Choice:
    """What follows from rates: which all-reduce from which size on, and how large a bucket of gradients is.

    Args:
      rates: the `Rates`.
      crossovers: tuple of (bytes, algorithm), ascending, the first from 0 bytes on.
      bucket_bytes: int.
    """

    rates: Rates
    crossovers: tuple
    bucket_bytes: int

    @classmethod
    def of(cls, topology, rates):
        """Computes it from the cost model; some 40 ms for 64 ranks, once a process."""
        with _choices_lock:
            if (topology, rates) not in _choices:
                table = tuple(crossovers(topology, rates))
                _choices[topology, rates] = cls(rates, table, bucket_bytes(topology, rates))
            return _choices[topology, rates]

    def algorithm(self, num_bytes):
        """Returns the name of the all-reduce for `num_bytes` bytes."""
        return self.crossovers[bisect.bisect_right(self.crossovers, num_bytes, key=lambda row: row[0]) - 1][1]

    def to_dict(self):
        """Returns what JSON can hold; `from_dict` restores it."""
        return {**dataclasses.asdict(self), "rates": self.rates.to_dict()}

    @classmethod
    def from_dict(cls, values):
        """Returns the choice that `to_dict` made `values` of, also through JSON.

        Raises:
          ConfigurationError: `values` is something else.
        """
        try:
            rates, table = (
                Rates.from_dict(values["rates"]),
                tuple((int(size), check(name)) for size, name in values["crossovers"]),
            )
            choice = cls(rates, table, int(values["bucket_bytes"]))
            sizes = [size for size, _ in table]
            valid = sizes[:1] == [0] and sizes == sorted(set(sizes)) and choice.bucket_bytes > 0
        except (TypeError, KeyError, ValueError) as error:
            raise ConfigurationError(_EXPECTED_CHOICE.format(values, f" ({error})")) from error
        if not valid:
            raise ConfigurationError(_EXPECTED_CHOICE.format(values, ""))
        return choice


# Collectives whose chunks belong to slots; the chunks of the others are mere pieces.
_CHUNKS_OF_SLOTS = ("all_gather", "reduce_scatter", "all_to_all")


class Plans:
    """The plans of one rank. Thread safe.

    Args:
      native: the native group, for `library.core()`; None where there is only one rank.
      rank: int.
      topology: the `Topology` of the members, which decides the choice for good.
      num_sockets: int >= 1, that two ranks share; large all-reduces are striped over them.
      members: tuple of the slots that have a rank, by rank; None: every slot has.
      num_slots: int; None: as many as there are ranks.
    """

    def __init__(self, native, rank, topology, num_sockets=1, members=None, num_slots=None):
        self.topology = topology
        self._num_sockets = num_sockets
        self._native = native
        self._choice = self._algorithm = None
        self._numbers = {}  # what was asked for -> its number, in the order of the numbers
        self._lock = threading.RLock()  # guards _numbers and the members
        self._num_slots = num_slots or topology.world_size
        self._set_members(rank, topology, members)

    def _set_members(self, rank, topology, members):
        self._rank, self._present = rank, topology
        self._members = tuple(range(topology.world_size)) if members is None else tuple(members)

    def reload(self, rank, topology, members, load):
        """Loads the plans of all numbers again, for other members, by `load(table, num_steps, num_chunks)`."""
        with self._lock:
            self._set_members(rank, topology, members)
            for key in self._numbers:
                self._load(key, load)

    @property
    def lock(self):
        """Held by whoever must not be met by new plans."""
        return self._lock

    @property
    def choice(self):
        """The `Choice`; that of the default rates until it is set. Must be equal on all ranks."""
        if self._choice is None:
            self._choice = Choice.of(self.topology, default_rates(self.topology))
        return self._choice

    @choice.setter
    def choice(self, value):
        self._choice = value

    @property
    def algorithm(self):
        """The name of the all-reduce for every size, or None: by size. Must be equal on all ranks."""
        return self._algorithm

    @algorithm.setter
    def algorithm(self, name):
        self._algorithm = None if name is None else check(name)

    @property
    def bucket_bytes(self):
        """How large a bucket of gradients should be."""
        if self._algorithm is None:
            return self.choice.bucket_bytes
        return bucket_bytes(self.topology, self.choice.rates, self._algorithm)

    def name(self, num_bytes, algorithm=None):
        """Returns the name of the all-reduce for `num_bytes` bytes (None: unknown, then that for 1 MiB).

        Args:
          num_bytes: int or None.
          algorithm: str, a name that wins over everything else, or None.

        Raises:
          ConfigurationError: there is no algorithm of that name.
        """
        if algorithm is not None:
            return check(algorithm)
        return self._algorithm or self.choice.algorithm(_UNKNOWN_BYTES if num_bytes is None else num_bytes)

    def all_reduce(self, name, num_bytes):
        """Returns the native number of the plan of an all-reduce algorithm for `num_bytes` bytes (None: unknown)."""
        return self._number(("all_reduce", name, self._num_sockets if (num_bytes or 0) >= _STRIPED_BYTES else 1))

    def other(self, collective, options=()):
        """Returns the native number of the plan of another collective; `options` are pairs that its steps take."""
        return self._number((collective, *options))

    def _number(self, key):
        with self._lock:
            if key not in self._numbers:
                native, core = self._native, library.core()
                self._numbers[key] = self._load(key, lambda *table: core.tfdist_group_load_plan(native, *table))
            return self._numbers[key]

    def _load(self, key, load):
        """Here, and only here, steps become the table that the native core reads."""
        collective, *rest = key
        if collective == "all_reduce" and rest:
            algorithm, lanes = ALL_REDUCE[rest[0]], rest[1]
            options = algorithm.options(self._present)
        else:
            algorithm, lanes, options = ALGORITHMS[collective], 1, dict(rest)
        if "root" in options:  # a slot; where it is empty the first member stands in
            root = options["root"]
            options["root"] = self._members.index(root) if root in self._members else 0
        world_size = self._present.world_size
        steps = list(striped(algorithm.steps(self._rank, world_size, **options), lanes))
        num_chunks = lanes * algorithm.num_chunks(world_size, **options)
        rows = [(step.kind, step.peer, step.chunk, step.source) for step in steps]
        if collective in _CHUNKS_OF_SLOTS:
            chunk = [*self._members, *(self._num_slots + slot for slot in self._members)]
            rows = [(kind, peer, chunk[c], source if source < 0 else chunk[source]) for kind, peer, c, source in rows]
            num_chunks = algorithm.num_chunks(self._num_slots)
        table = np.array(rows, np.int32).reshape(-1, 4)
        number = load(table.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)), len(rows), num_chunks)
        if number < 0:
            raise ConfigurationError(f"{key} was expected to yield a valid plan. Received: {steps}.")
        return number
