"""What parameter servers have counted between two moments: updates, their staleness, waiting."""

import collections
import dataclasses

_NOTHING = {"updates": 0, "workers": {}}
_NO_PUSHES = {"pushes": 0, "dropped": 0, "waited_seconds": 0.0, "staleness": {}}


@dataclasses.dataclass(frozen=True)
class Activity:
    """What happened on the servers in some seconds.

    Args:
      seconds: float > 0.
      updates: int, how often parameters were updated.
      worker_updates: dict of rank to int, the gradients of each worker that were applied: in the asynchronous modes each is
        an update of its own, in mode "sync" those of several workers make one.
      waited_seconds: dict of rank to float, how long the waiting rule held each worker up; in mode "sync" with the time
        that the update took.
      staleness: dict of staleness to how many gradients had it.
    """

    seconds: float
    updates: int
    worker_updates: dict
    waited_seconds: dict
    staleness: dict

    @property
    def staleness_mean(self):
        """The mean over gradients; 0.0 where none came."""
        count = sum(self.staleness.values())
        return sum(value * times for value, times in self.staleness.items()) / count if count else 0.0

    def logs(self):
        """Returns the figures by name, floats; those of single workers where there are several."""
        rate = 1.0 / max(self.seconds, 1e-9)
        logs = {
            "staleness_mean": self.staleness_mean,
            "staleness_max": float(max(self.staleness, default=0)),
            "updates_per_second": self.updates * rate,
            "waiting_seconds": float(sum(self.waited_seconds.values())),
        }
        if len(self.worker_updates) > 1:
            for rank, updates in sorted(self.worker_updates.items()):
                logs[f"updates_per_second_worker_{rank}"] = updates * rate
        return logs

    def text(self):
        """Returns the figures in one line."""
        logs = self.logs()
        workers = [f"{logs[name]:.1f}" for name in logs if name.startswith("updates_per_second_worker_")]
        return (
            f"{logs['updates_per_second']:.1f} updates/s{' (by worker ' + ', '.join(workers) + ')' if workers else ''}, "
            f"staleness {logs['staleness_mean']:.2f} on average and {logs['staleness_max']:.0f} at most, "
            f"{logs['waiting_seconds']:.2f} s waited"
        )


def between(before, after, seconds):
    """Returns the `Activity` between two snapshots.

    Every gradient goes to every server, which sees a staleness of its own and lets the worker wait at the same time as the
    others do: of the servers of one store the largest counts, but all values of staleness are kept.

    Args:
      before, after: dict of the name of a store to what `ClientStore.summaries` gave, a list with a dict for each server.
        A store that is new in `after` has counted from 0.
      seconds: float, the time between them.
    """
    updates, staleness = 0, collections.Counter()
    applied, waited = collections.Counter(), collections.Counter()
    for name, servers in after.items():
        earlier = before.get(name) or [_NOTHING] * len(servers)
        changes = list(zip(earlier, servers))
        updates += max((new["updates"] - old["updates"] for old, new in changes), default=0)
        for rank in sorted({rank for server in servers for rank in server["workers"]}, key=int):
            records = [_records(old, new, rank) for old, new in changes]
            applied[int(rank)] += max(_applied(new) - _applied(old) for old, new in records)
            waited[int(rank)] += max(new["waited_seconds"] - old["waited_seconds"] for old, new in records)
            for old, new in records:
                staleness.update(_difference(old["staleness"], new["staleness"]))
    return Activity(seconds, updates, dict(applied), dict(waited), dict(sorted(staleness.items())))


def _records(old, new, rank):
    return old["workers"].get(rank, _NO_PUSHES), new["workers"].get(rank, _NO_PUSHES)


def _applied(record):
    return record["pushes"] - record["dropped"]


def _difference(old, new):
    counts = {int(value): count - old.get(value, 0) for value, count in new.items()}
    return {value: count for value, count in counts.items() if count}
