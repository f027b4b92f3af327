"""How fast a group is, measured when it forms; what follows from rank 0's measurement holds for all ranks.

Rank 0 announces probes, all-reduces of zeros, one after another as long as they fit into its budget of time; the others
do what they are told. Then it fits the rates (`collectives/fit.py`), computes which algorithm is the fastest for which
size, and tells the others. Links too slow to be measured in time are judged by fewer and smaller probes, and by default
rates for the rest.
"""

import itertools
import json
import time

import numpy as np
from absl import logging

from tfdist.cluster.variables import DEFAULT_PLAN
from tfdist.collectives import ALL_REDUCE
from tfdist.collectives.choose import predict
from tfdist.collectives.fit import Probe, fit
from tfdist.collectives.rates import default_rates
from tfdist.comm import library, plan_file
from tfdist.comm.plans import Choice
from tfdist.errors import ConfigurationError

_BUDGET_SECONDS = 0.1  # of 0.2: what a probe takes is estimated, and computing the choice takes 40 ms for 64 ranks
_SHARE, _PROBE_SECONDS, _MAX_TIMES = 0.1, 2e-3, 50  # at most, of one probe: of the time left, seconds, and times
_TURNS = 2  # of each algorithm at each size
_MARGIN = 1.5  # an estimate may be too low
_SIZES = (4 << 10, 32 << 10, 256 << 10, 1 << 20, 4 << 20)
_SMALL = "recursive_doubling"  # has the fewest latencies: the first probe, and how rank 0 speaks to the others
_BOARD_BYTES = 8 << 10
_MAX_ERROR = 1200  # characters; six bytes each at most
_NAMES = tuple(ALL_REDUCE)


def tune(group, plan=None):
    """Measures, or reads, the group's rates and sets `group.choice`; to be called by all ranks at once.

    Takes under 0.2 s, whatever the links and the number of ranks. Blocks as collectives do.

    Args:
      group: the `Group`. Its `algorithm` is checked to be equal on all ranks.
      plan: str or None. A path: rank 0 reads the choice from there, or measures and saves it where there is no such
        file. "default": nothing is measured, and the ordinary rates hold. None: measured.

    Raises:
      MismatchError: ranks differ in `algorithm`, or in whether they measure.
      ConfigurationError: the plan cannot be read or saved, or was made for another topology; on all ranks alike.
    """
    if len(group.members) == 1:
        return
    _agree(group, plan)
    crew = _Crew(group)
    outcome = crew.tell(_decide(crew, group.topology, plan)) if group.rank == group.chief else crew.follow()
    if "error" in outcome:
        raise ConfigurationError(outcome["error"])
    group.choice = Choice.from_dict(outcome)
    if group.rank == group.chief:
        logging.info("tfdist: %s", describe(group))


def describe(group):
    """Returns one line on which all-reduce is used from which size on."""
    if group.algorithm is not None:
        return f"all-reduce by {group.algorithm}, as chosen for every size"
    first, *later = group.choice.crossovers
    steps = [first[1], *(f"from {num_bytes:,} bytes {name}" for num_bytes, name in later)]
    return f"all-reduce by {', '.join(steps)}; buckets of {group.bucket_bytes:,} bytes"


def _agree(group, plan):
    """A short all-reduce where all is well; the text is exchanged only where it is not."""
    settings = {"TFDIST_ALGORITHM": group.algorithm, "TFDIST_PLAN": "default" if plan == DEFAULT_PLAN else "measured"}
    number = (0 if group.algorithm is None else 1 + _NAMES.index(group.algorithm)) * 2 + (plan == DEFAULT_PLAN)
    extremes = group.all_reduce(np.array([number, -number]), "max", name="settings", algorithm=_SMALL)
    if extremes[0] != -extremes[1]:
        group.agree("the choice of the all-reduce", settings)


def _decide(crew, topology, plan):
    """What rank 0 tells the others at the end: a choice as a dict, or {"error": text}."""
    try:
        choice = plan_file.load(plan, topology) if plan not in (None, DEFAULT_PLAN) else None
        if choice is None:
            rates = default_rates(topology) if plan == DEFAULT_PLAN else _measure(crew, topology)
            choice = Choice.of(topology, rates)
            if plan not in (None, DEFAULT_PLAN):
                plan_file.save(plan, topology, choice)
        return choice.to_dict()
    except ConfigurationError as error:
        return {"error": str(error)[:_MAX_ERROR]}


def _measure(crew, topology):
    deadline = time.perf_counter() + _BUDGET_SECONDS
    reduce_seconds_per_byte = library.core().tfdist_measure_reduce_seconds_per_byte()
    done = {}
    for num_bytes, _, name in itertools.product(_SIZES, range(_TURNS), [_SMALL, *_larger(topology)]):
        left = deadline - time.perf_counter()
        expected = _estimate(name, num_bytes, topology, list(done.values()))
        if expected < left - _announcement_seconds(done):
            most = min(_SHARE * left, _PROBE_SECONDS) / expected if done else 1
            probe = crew.probe(name, num_bytes, max(1, min(_MAX_TIMES, int(most))))
            # What disturbs a machine while a job starts only adds time.
            done[name, num_bytes] = min(probe, done.get((name, num_bytes), probe), key=lambda probe: probe.seconds)
    return fit(topology, list(done.values()), reduce_seconds_per_byte)


def _announcement_seconds(done):
    return done[_SMALL, _SIZES[0]].seconds if done else 0.0


def _larger(topology):
    return ["ring", "hierarchical"] if len(topology.hosts) > 1 else ["ring"]


def _estimate(name, num_bytes, topology, done):
    """Returns the seconds that a probe will hardly exceed: time grows at most as the bytes do."""
    alike = [probe for probe in done if probe.algorithm == name]
    if not done:
        return 0.0
    if not alike:
        rates, first = default_rates(topology), done[0]
        ratio = predict(name, topology, rates, num_bytes) / predict(_SMALL, topology, rates, first.num_bytes)
        return _MARGIN * first.seconds * ratio
    last, steepest = alike[-1], alike[-1].seconds / alike[-1].num_bytes
    for earlier in alike[-2:-1]:
        if earlier.num_bytes < last.num_bytes:
            slope = max(last.seconds - earlier.seconds, 0.0) / (last.num_bytes - earlier.num_bytes)
            steepest = min(steepest, _MARGIN * slope)
    return last.seconds + steepest * (num_bytes - last.num_bytes)


class _Crew:
    """Rank 0 tells the others what comes, in all-reduces to which they add zeros: probes, and at last the outcome."""

    def __init__(self, group):
        self._group = group
        self._board = np.zeros(_BOARD_BYTES // 4, np.int32)
        self._exchange = group.prepare_all_reduce(self._board, name="what comes", algorithm=_SMALL)

    def tell(self, message):
        """Rank 0: gives the others a dict that JSON can hold, and returns it."""
        data = json.dumps(message).encode()
        self._board.view(np.uint8)[:] = np.frombuffer(data.ljust(_BOARD_BYTES), np.uint8)
        self._exchange()
        return message

    def probe(self, name, num_bytes, times):
        """Rank 0: has all do an all-reduce so many times; returns a `Probe`: the lower quartile of all but the first."""
        self.tell({"probe": [name, num_bytes, times]})
        seconds = self._run(name, num_bytes, times)
        counted = sorted(seconds[1:] or seconds)
        return Probe(name, num_bytes, counted[len(counted) // 4])

    def follow(self):
        """The others: do what rank 0 tells them until the outcome comes, and return that."""
        while True:
            self._board[:] = 0
            self._exchange()
            message = json.loads(self._board.tobytes())
            if "probe" not in message:
                return message
            self._run(*message["probe"])

    def _run(self, name, num_bytes, times):
        array = np.empty(num_bytes // 4, np.float32)
        array.fill(0)  # touched: no page fault is timed; and sums stay finite
        reduce = self._group.prepare_all_reduce(array, name="probe", algorithm=name)
        seconds = []
        for _ in range(times):
            begin = time.perf_counter()
            reduce()
            seconds.append(time.perf_counter() - begin)
        return seconds
