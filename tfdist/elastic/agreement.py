"""Who is there from now on: the members of a generation agree on those of the next, through the job's store.

Each member that has seen a loss reports whom it misses, and which collectives it has and has not. When all that are not
missed have reported, the senior one of them claims the decision; the store lets one claim win, so there is one decision
whatever else fails meanwhile. Who is not in it is out.
"""

import dataclasses
import json
import math
import time

from tfdist.cluster import lives
from tfdist.cluster.store.client import StoreTimeoutError

_LOOK_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Decision:
    """The next generation.

    Args:
      members: dict of slot -> incarnation, in the order of seniority.
      counts: dict of channel -> how many of its collectives some member has committed; of channels with open ones.
      joined: tuple of the slots that are new.
      is_common: whether all were ready to take in the same ones.
      error: why there is no next generation; "" where there is one.
      flags: dict of index -> the number that commits have told some member; all know it from now on.
      num_joins: int, how many requests to join the members have read.
    """

    members: dict
    counts: dict
    joined: tuple = ()
    is_common: bool = True
    error: str = ""
    flags: dict = dataclasses.field(default_factory=dict)
    num_joins: int = 0

    def to_bytes(self):
        """Returns JSON."""
        members = [[slot, incarnation] for slot, incarnation in self.members.items()]
        counts = {str(channel): count for channel, count in self.counts.items()}
        others = {"joined": self.joined, "is_common": self.is_common, "error": self.error, "num_joins": self.num_joins}
        return json.dumps({"members": members, "counts": counts, "flags": list(self.flags.items()), **others}).encode()

    @classmethod
    def from_bytes(cls, data):
        """Reads what `to_bytes` made."""
        values = json.loads(data)
        counts = {int(channel): int(count) for channel, count in values["counts"].items()}
        members = {int(slot): int(incarnation) for slot, incarnation in values["members"]}
        others = {name: values[name] for name in ("is_common", "error", "num_joins")}
        return cls(members, counts, tuple(values["joined"]), flags=dict(values["flags"]), **others)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a member knows when it stops.

    Args:
      lost: set of the slots that it misses.
      open: set of the channels on which it has started something that it has not committed.
      committed: dict of channel -> how many collectives it has committed.
      joiners: list of [slot, incarnation] that it is ready to take in.
      flags, num_joins: see `Decision`; this member's.
    """

    lost: set = dataclasses.field(default_factory=set)
    open: set = dataclasses.field(default_factory=set)
    committed: dict = dataclasses.field(default_factory=dict)
    joiners: list = dataclasses.field(default_factory=list)
    flags: dict = dataclasses.field(default_factory=dict)
    num_joins: int = 0

    @classmethod
    def of(cls, text, lost, joiners, num_joins=0):
        """Reads what the native core tells (tfdist_group_report)."""
        report = cls(lost=set(lost), joiners=list(joiners), num_joins=num_joins)
        for line in text.splitlines():
            kind, key, number = line.split()
            if kind == "open":
                report.open.add(int(key))
            else:
                (report.committed if kind == "committed" else report.flags)[int(key)] = int(number)
        return report

    def to_bytes(self):
        """Returns JSON."""
        values = {"lost": sorted(self.lost), "open": sorted(self.open), "committed": list(self.committed.items())}
        others = {"joiners": self.joiners, "flags": list(self.flags.items()), "num_joins": self.num_joins}
        return json.dumps({**values, **others}).encode()

    @classmethod
    def from_bytes(cls, data):
        """Reads what `to_bytes` made."""
        values = json.loads(data)
        return cls(
            set(values["lost"]), set(values["open"]), dict(values["committed"]), values["joiners"],
            dict(values["flags"]), values["num_joins"],
        )  # fmt: skip


class Agreement:
    """One member's part in agreeing on the generation after `generation`.

    Args:
      store: a `StoreClient` of its own.
      slot: int, this member.
      members: dict of slot -> incarnation, the present ones in the order of seniority.
      generation: int, the present one.
      min_workers: int; with fewer members there is no next generation.
      patience: float seconds after which a member that does not report is missed by this one.
      timeout: float seconds for the whole.
    """

    def __init__(self, store, slot, members, generation, *, min_workers, patience, timeout):
        self._store, self._slot, self._members = store, slot, dict(members)
        self._prefix = f"elastic/{generation}/"
        self._min_workers, self._patience, self._timeout = min_workers, patience, timeout

    def agree(self, report):
        """Returns the `Decision`; blocks until there is one.

        Raises:
          TimeoutError: there was none in time.
          TransportError: the store is gone.
        """
        begin = time.monotonic()
        told = None
        while time.monotonic() - begin < self._timeout:
            claimed = self._store.try_get(f"{self._prefix}decision")
            if claimed is not None:
                return Decision.from_bytes(claimed)
            if report.lost != told:
                self._store.set(f"{self._prefix}report/{self._slot}", report.to_bytes())
                told = set(report.lost)
            reports = self._reports()
            candidates = remaining(self._members, reports, self._dead())
            missing = [slot for slot in candidates if slot not in reports]
            if not missing and candidates and candidates[0] == self._slot:
                decision = decide(self._members, candidates, reports, self._min_workers)
                gone = dead_members(self._store, {slot: decision.members[slot] for slot in decision.joined})
                decision = without(decision, gone)
                return Decision.from_bytes(self._store.claim(f"{self._prefix}decision", decision.to_bytes()))
            if missing and time.monotonic() - begin > self._patience:
                report.lost.update(missing)
                continue
            self._await(f"report/{missing[0]}" if missing else "decision")
        raise TimeoutError(
            f"The workers were expected to agree on who is left within {self._timeout:g} s. Received: reports of "
            f"{sorted(self._reports())} of {sorted(self._members)}."
        )

    def _await(self, name):
        try:
            self._store.get(f"{self._prefix}{name}", timeout=_LOOK_SECONDS)
        except StoreTimeoutError:
            pass

    def _reports(self):
        prefix = f"{self._prefix}report/"
        found = {int(key[len(prefix) :]): self._store.try_get(key) for key in self._store.keys(prefix)}
        return {slot: Report.from_bytes(data) for slot, data in found.items() if data is not None}

    def _dead(self):
        return dead_members(self._store, self._members)


def dead_members(store, members):
    """Returns the set of the slots of `members` (slot -> incarnation) that the launcher has seen die."""
    return {slot for slot, incarnation in deaths(store).items() if incarnation >= members.get(slot, math.inf)}


def deaths(store):
    """Returns a dict of slot -> the newest incarnation that the launcher has seen die."""
    return lives.incarnations(store.items(lives.DEAD))


def remaining(members, reports, dead):
    """Returns the members that nobody misses, in the order of seniority.

    Who is out accuses nobody: where two miss each other the senior one stays.
    """
    out = set(dead)
    for slot in members:
        if slot in reports and slot not in out:
            out |= reports[slot].lost - {slot}
    return [slot for slot in members if slot not in out]


def decide(members, candidates, reports, min_workers):
    """Returns the `Decision` that follows from the reports of all `candidates`."""
    kept = {slot: members[slot] for slot in candidates}
    told = [reports[slot] for slot in candidates]
    if len(kept) < min_workers:
        lost = ", ".join(str(slot) for slot in members if slot not in kept)
        return Decision(
            kept, {}, error=f"{len(kept)} workers are left of at least {min_workers} (min_workers). Lost: rank {lost}."
        )
    counts = {}
    for report in told:
        for channel in report.open:
            counts[channel] = max(other.committed.get(channel, 0) for other in told)
    is_common = all(report.joiners == told[0].joiners for report in told)
    joiners = {slot: incarnation for slot, incarnation in (told[0].joiners if is_common else []) if slot not in kept}
    flags = {}
    for report in told:
        for index, number in report.flags.items():
            flags[index] = max(number, flags.get(index, number))
    num_joins = max(report.num_joins for report in told)
    return Decision({**kept, **joiners}, counts, tuple(joiners), is_common, flags=flags, num_joins=num_joins)


def without(decision, gone):
    """Returns a decision without some of those who were to join."""
    members = {slot: incarnation for slot, incarnation in decision.members.items() if slot not in gone}
    return dataclasses.replace(
        decision, members=members, joined=tuple(slot for slot in decision.joined if slot not in gone)
    )
