"""What the launchers of several hosts tell each other through the store. On one host there is nobody to tell."""

import time

LIVE = "launch/live/"  # + the node's rank: "<workers that run or are to be started again> <a counter>"
_FAILED = "launch/failed/"  # + the node's rank, set when its part of the job fails
_EXCHANGE_SECONDS = 1.0
_SILENT_SECONDS = 30.0
_LAST_WORD_SECONDS = 3.0


class Nodes:
    """Keeps up with the other hosts of a job that recovers. Not thread safe.

    Args:
      job: a `Job`.
      store: its `JobStore`.
    """

    def __init__(self, job, store):
        self._job, self._store = job, store
        self.is_alone = job.num_nodes == 1
        self._live, self._beats, self._next = None, 0, 0.0
        self._heard = None  # when node 0 last answered
        self._elsewhere = job.num_initial_workers - job.num_workers

    def exchange(self, live):
        """Tells the others how many workers this host has, once in a second and at every change; hears of theirs.

        Returns:
          Why the job cannot go on here, or "".
        """
        if self.is_alone or live == self._live and time.monotonic() < self._next:
            return ""
        now, own = time.monotonic(), str(self._job.node_rank)
        self._live, self._beats, self._next = live, self._beats + 1, now + _EXCHANGE_SECONDS
        self._store.set(f"{LIVE}{own}", f"{live} {self._beats}".encode(), _EXCHANGE_SECONDS)
        counts = {node: int(value.split()[0]) for node, value in self._store.items(LIVE).items()}
        if own not in counts:  # node 0 may not have started yet
            is_gone = self._heard is not None and now - self._heard > _SILENT_SECONDS
            return f"node 0 has not answered for {_SILENT_SECONDS:g} s: the job ends." if is_gone else ""
        self._heard = now
        others = (str(node) for node in range(self._job.num_nodes) if str(node) != own)
        self._elsewhere = sum(counts.get(node, self._job.num_workers) for node in others)
        failed = sorted(self._store.items(_FAILED))
        return f"node {failed[0]} has failed, see its output: the job ends." if failed else ""

    def live_elsewhere(self):
        """Returns how many workers the other hosts have, as far as they have told."""
        return self._elsewhere

    def tell_failed(self):
        """Ends the job on all hosts."""
        if not self.is_alone:
            self._store.set(f"{_FAILED}{self._job.node_rank}", b"")

    def await_others(self):
        """On node 0: gives the others a moment to hear of the failure before the store closes."""
        deadline = time.monotonic() + _LAST_WORD_SECONDS
        while not self.is_alone and self._job.node_rank == 0 and time.monotonic() < deadline:
            if self._store.others_have_ended():
                return
            time.sleep(0.05)
