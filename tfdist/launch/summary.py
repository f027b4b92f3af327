"""What `tfdist run --summary` prints at the end: a table from what the parameter servers have counted.

A server writes its statistics to the store under `parameter_server/summary/<index>` when it ends, as JSON:

    {"server": 0, "updates": 200, "parameters_bytes": 40000,
     "workers": {"0": {"pushes": 100, "dropped": 0, "waited_seconds": 0.5, "seconds": 9.5, "bytes_received": 4000000,
                       "bytes_sent": 4000000, "staleness": {"0": 60, "1": 40}}}}

Bytes are as the server counts them; `seconds`, from a worker's first push to its last, may be absent: then the job's own
time is taken. Every push goes to every server, so that counts of pushes and waiting times are those of the server with
the most, while bytes add up.
"""

import collections
import dataclasses
import json

_COLUMNS = ("worker", "pushes", "updates/s", "mean staleness", "max", "waited s", "MB sent", "received", "dropped")


@dataclasses.dataclass(frozen=True)
class _Row:
    """One worker, over all servers."""

    pushes: int
    dropped: int
    waited_seconds: float
    seconds: float
    sent_bytes: int
    received_bytes: int
    staleness: dict  # staleness -> number of pushes that had it

    def cells(self, worker, job_seconds):
        counted = sum(self.staleness.values())
        mean = sum(value * count for value, count in self.staleness.items()) / counted if counted else 0.0
        applied = self.pushes - self.dropped
        rate = applied / max(self.seconds or job_seconds, 1e-9)
        return (str(worker), str(self.pushes), f"{rate:.1f}", f"{mean:.2f}", str(max(self.staleness, default=0)),
                f"{self.waited_seconds:.2f}", _megabytes(self.sent_bytes), _megabytes(self.received_bytes),
                str(self.dropped))  # fmt: skip


def parse(values):
    """Reads what the servers wrote.

    Args:
      values: bytes of JSON, one for each server.

    Returns:
      A list of dicts by the servers' index, without what is no statistics.
    """
    found = []
    for value in values:
        try:
            server = json.loads(value)
            rows = {int(worker): _row(row) for worker, row in server["workers"].items()}
            counts = {key: int(server[key]) for key in ("server", "updates", "parameters_bytes")}
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            continue
        found.append({**counts, "rows": rows})
    return sorted(found, key=lambda server: server["server"])


def render(servers, seconds):
    """Returns the text, some lines.

    Args:
      servers: what `parse` returned.
      seconds: float, how long the job took.
    """
    if not servers:
        return "tfdist run: no parameter server has left statistics: nobody trained through one.\n"
    ranks = sorted({rank for server in servers for rank in server["rows"]})
    table = [_COLUMNS]
    for rank in ranks:
        rows = [server["rows"][rank] for server in servers if rank in server["rows"]]
        table.append(_merge(rows).cells(rank, seconds))
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths)) for row in table]
    told = [f"server {server['server']}: {server['updates']} updates, {_megabytes(server['parameters_bytes'])} MB"
            for server in servers]  # fmt: skip
    return "\n".join([*lines, "; ".join(told), ""])


def _row(row):
    return _Row(
        pushes=int(row["pushes"]),
        dropped=int(row.get("dropped", 0)),
        waited_seconds=float(row["waited_seconds"]),
        seconds=float(row.get("seconds", 0.0)),
        sent_bytes=int(row["bytes_received"]),
        received_bytes=int(row["bytes_sent"]),
        staleness={int(staleness): int(count) for staleness, count in row["staleness"].items()},
    )


def _merge(rows):
    staleness = collections.Counter()
    for row in rows:
        staleness.update(row.staleness)
    return _Row(
        pushes=max(row.pushes for row in rows),
        dropped=max(row.dropped for row in rows),
        waited_seconds=max(row.waited_seconds for row in rows),
        seconds=max(row.seconds for row in rows),
        sent_bytes=sum(row.sent_bytes for row in rows),
        received_bytes=sum(row.received_bytes for row in rows),
        staleness=staleness,
    )


def _megabytes(number):
    return f"{number / 1e6:.1f}"
