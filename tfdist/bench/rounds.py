"""Measures crews in turns: in each round every crew runs once, all others sleeping, in an order that rotates."""

import dataclasses
import itertools
import statistics
import time

from tfdist.bench.crew import CrewFailedError

_BLOCK_SECONDS = 1e-3  # a block is timed as a whole; short, so that a disturbance hits few of them
_TURN_SECONDS = 30e-3
_MAX_BLOCKS = 20
_CALIBRATION = 3
_MIN_ROUNDS = 3
_IDLE_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the result.

    Args:
      peer: its name.
      nproc: int, its ranks.
      bytes: int, of each rank's buffer.
      seconds_median: float, of one operation: the slowest rank's, the median over all blocks of all rounds.
      rss_mb: float, the largest peak resident memory of a rank (10^6 bytes).
      rounds: tuple of float, the median of each round; rounds of the peers of one size belong together.
    """

    peer: str
    nproc: int
    bytes: int
    seconds_median: float
    rss_mb: float
    rounds: tuple[float, ...] = ()

    @property
    def busbw_gbps(self):
        """Bus bandwidth in GB/s as nccl-tests defines it: bytes / seconds * 2 (n - 1) / n."""
        return self.bytes / self.seconds_median * 2 * (self.nproc - 1) / self.nproc / 1e9


class _Turns:
    """A crew's part in the measurement of one size."""

    def __init__(self, crew, num_bytes):
        self.crew, self._bytes = crew, num_bytes
        digests = [reply["digest"] for reply in crew.ask("prepare", num_bytes=num_bytes)]
        if len(set(digests)) > 1:
            raise CrewFailedError(
                f"{crew.name}: all ranks were expected to get the same bits of {num_bytes} bytes. Received: {digests}."
            )
        self._iterations, self._blocks, self._warmup = 1, 1, 1
        self._calibrate()
        self._rounds = []  # the seconds of all blocks of each
        self.idle_seconds = -crew.cpu_seconds()

    def _calibrate(self):
        for _ in range(_CALIBRATION):
            once = statistics.median(self._run(self._iterations, self._blocks))
            self._iterations = max(1, round(_BLOCK_SECONDS / once))
            self._blocks = min(_MAX_BLOCKS, max(1, round(_TURN_SECONDS / (once * self._iterations))))
            self._warmup = self._iterations

    def _run(self, iterations, blocks):
        replies = self.crew.ask("measure", warmup=self._warmup, iterations=iterations, blocks=blocks)
        return [max(times) for times in zip(*(reply["seconds"] for reply in replies))]

    def take(self):
        """One turn."""
        begin = self.crew.cpu_seconds()
        self._rounds.append(self._run(self._iterations, self._blocks))
        self.idle_seconds -= self.crew.cpu_seconds() - begin

    def finish(self):
        """Returns the `Row`."""
        self.idle_seconds += self.crew.cpu_seconds()
        memory = max(reply["rss_mb"] for reply in self.crew.ask("release"))
        seconds = statistics.median(itertools.chain.from_iterable(self._rounds))
        by_round = tuple(map(statistics.median, self._rounds))
        return Row(self.crew.name, self.crew.world_size, self._bytes, seconds, memory, by_round)


def measure(crews, num_bytes, *, rounds, seconds=None, warn):
    """Measures one size.

    Args:
      crews: list of `Crew`; those that fail are removed from it and closed by whoever opened them.
      num_bytes: int > 0, of each rank's buffer, a multiple of 4.
      rounds: int, the number of rounds.
      seconds: float or None; rounds end after so long, but not before the third.
      warn: called with a line for a crew that failed or was not idle in the others' turns.

    Returns:
      List of `Row`, of the crews that did not fail.
    """
    turns = []
    for crew in list(crews):
        _unless_failed(crews, crew, warn, lambda crew=crew: turns.append(_Turns(crew, num_bytes)))
    begin = time.monotonic()
    for index in range(rounds):
        if seconds is not None and index >= _MIN_ROUNDS and time.monotonic() - begin > seconds:
            break
        shift = index % max(1, len(turns))
        for turn in [*turns[shift:], *turns[:shift]]:
            if turn.crew in crews:
                _unless_failed(crews, turn.crew, warn, turn.take)
    wall, rows = time.monotonic() - begin, []
    for turn in turns:
        if turn.crew not in crews:
            continue
        _unless_failed(crews, turn.crew, warn, lambda turn=turn: rows.append(turn.finish()))
        if turn.idle_seconds > _IDLE_SHARE * wall:
            warn(f"{turn.crew.name} used {turn.idle_seconds:.2f} s of processor time while others were measured")
    return rows


def _unless_failed(crews, crew, warn, action):
    try:
        action()
    except CrewFailedError as error:
        crews.remove(crew)
        warn(str(error))
