"""`tfdist bench all-reduce --explain`: every algorithm as the cost model predicts it, and as it is, in turns."""

import dataclasses
import json
import statistics
import sys
import time

from tfdist.bench import machine, peers, table
from tfdist.bench.crew import CrewFailedError
from tfdist.errors import ConfigurationError

_MIN_ROUNDS = 3
_COLUMN = 10


@dataclasses.dataclass(frozen=True)
class Row:
    """One algorithm at one size.

    Args:
      algorithm: its name.
      nproc: int, ranks.
      bytes: int, of each rank's buffer.
      seconds_predicted: float.
      seconds_median: float, measured: of one reduction, the slowest rank's, the median over rounds.
      chosen: bool; whether the group takes it for this size.
    """

    algorithm: str
    nproc: int
    bytes: int
    seconds_predicted: float
    seconds_median: float
    chosen: bool

    @property
    def ratio(self):
        """What it takes over what was predicted."""
        return self.seconds_median / self.seconds_predicted


def check(chosen):
    """Refuses options that mean nothing beside --explain."""
    for name in ("peers", "limits", "plot", "wire_dtype"):
        if getattr(chosen, name):
            raise ConfigurationError(
                f"--explain is expected without --{name.replace('_', '-')}. Received: both. It compares tfdist's own "
                "algorithms; leave one of them out."
            )


def run(chosen, setting):
    """Measures all sizes; returns the exit code.

    Args:
      chosen: the parsed options of `tfdist bench all-reduce`.
      setting: a `peers.Setting`.
    """
    try:
        with peers.tfdist_crew(setting, peers.PROGRAMS / "rank_explain.py") as crew:
            if not chosen.json:
                table.write(
                    f"all-reduce of float32, {setting.world_size} ranks: {machine.describe()}\n{_describe(crew)}"
                )
            for num_bytes in chosen.bytes:
                rows = measure(crew, num_bytes, rounds=chosen.rounds, seconds=chosen.seconds)
                _show(rows, chosen.json, first=num_bytes == chosen.bytes[0])
    except CrewFailedError as error:
        sys.stderr.write(f"tfdist bench: {' '.join(str(error).split())}\n")
        return 1
    return 0


def measure(crew, num_bytes, *, rounds, seconds=None):
    """Returns a list of `Row`, one an algorithm, for one size; arguments as in `rounds.measure`."""
    prepared = crew.ask("prepare", num_bytes=num_bytes)[0]
    predicted, times = prepared["predicted"], {name: [] for name in prepared["predicted"]}
    begin = time.monotonic()
    for index in range(rounds):
        if seconds is not None and index >= _MIN_ROUNDS and time.monotonic() - begin > seconds:
            break
        replies = crew.ask("measure", first=index % len(times))
        for name, found in times.items():
            found.append(max(reply["seconds"][name] for reply in replies))
    return [
        Row(name, crew.world_size, num_bytes, predicted[name], statistics.median(found), name == prepared["chosen"])
        for name, found in times.items()
    ]


def _describe(crew):
    reply = crew.ask("describe")[0]
    rates = reply["choice"]["rates"]
    inside = rates["inside"]
    return (
        f"measured: latency {table.duration(inside['latency_seconds'])}, a message {table.duration(inside['seconds_per_message'])}, "
        f"a start {table.duration(rates['start_seconds'])}, moves {1e-9 / inside['seconds_per_byte']:.3g} GB/s, "
        f"adds {1e-9 / rates['reduce_seconds_per_byte']:.3g} GB/s\n{reply['text']}"
    )


def _show(rows, as_json, first):
    if as_json:
        for row in rows:
            table.write(json.dumps({**dataclasses.asdict(row), "ratio": row.ratio}))
        return
    fastest = min(row.seconds_median for row in rows)
    cells = [
        (row.algorithm, table.size(row.bytes), table.duration(row.seconds_predicted), table.duration(row.seconds_median),
         f"{row.ratio:.2f}", f"{row.seconds_median / fastest:.2f}", "chosen" if row.chosen else "")
        for row in rows
    ]  # fmt: skip
    header = ("algorithm", "bytes", "predicted", "measured", "ratio", "x fastest", "")
    lines = table.align(header, cells, _COLUMN)
    table.write("\n".join([*([] if first else [""]), *lines[0 if first else 1 :]]))
