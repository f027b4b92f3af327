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


class Plans:
    """The plans of one rank. Thread safe.

    Args:
      native: the native group, for `library.core()`; None where there is only one rank.
      rank: int.
      topology: the `Topology`.
      num_sockets: int >= 1, that two ranks share; large all-reduces are striped over them.
    """

    def __init__(self, native, rank, topology, num_sockets=1):
        self.topology = topology
        self._num_sockets = num_sockets
        self._native, self._rank = native, rank
        self._choice = self._algorithm = None
        self._numbers = {}
        self._lock = threading.Lock()  # guards _numbers

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
        lanes = self._num_sockets if (num_bytes or 0) >= _STRIPED_BYTES else 1
        options = ALL_REDUCE[name].options(self.topology)
        return self._load(ALL_REDUCE[name], ("all_reduce", name, lanes), options, lanes)

    def other(self, collective, options=()):
        """Returns the native number of the plan of another collective; `options` are pairs that its steps take."""
        return self._load(ALGORITHMS[collective], (collective, *options), dict(options))

    def _load(self, algorithm, key, options, lanes=1):
        """Here, and only here, steps become the table that the native core reads."""
        with self._lock:
            if key not in self._numbers:
                world_size = self.topology.world_size
                steps = list(striped(algorithm.steps(self._rank, world_size, **options), lanes))
                rows = [(step.kind, step.peer, step.chunk, step.source) for step in steps]
                table = np.array(rows, np.int32).reshape(-1, 4)
                pointer = table.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
                num_chunks = lanes * algorithm.num_chunks(world_size, **options)
                number = library.core().tfdist_group_load_plan(self._native, pointer, len(rows), num_chunks)
                if number < 0:
                    raise ConfigurationError(f"{key} was expected to yield a valid plan. Received: {steps}.")
                self._numbers[key] = number
            return self._numbers[key]
