"""The rendezvous store of a job, as its launchers see it: node 0's serves it, the others ask it."""

import time

from tfdist.cluster import lives, variables
from tfdist.cluster.address import parse_address
from tfdist.cluster.server import ADDRESS_KEY, MOST_SERVERS, REQUEST_KEY, SUMMARY_KEY
from tfdist.cluster.store import StoreClient, StoreServer
from tfdist.errors import TfdistError
from tfdist.launch import nodes, report, summary

_ENDED = "launch/ended/"  # + the node's rank, set when its workers have ended
_ASK_SECONDS = 0.3
_TELL_SECONDS = 5.0
_OTHER_NODES_SECONDS = 600.0


class JobStore:
    """Serves the store on node 0, until `close()`.

    Args:
      job: a `Job`.
      secret: bytes, the job's.
      environ: the variables that the workers inherit.

    Raises:
      RendezvousError: the store cannot listen at the job's address.
    """

    def __init__(self, job, secret, environ):
        self._job, self._secret = job, secret
        self._server = None
        self._waiting_since, self._signs = None, {}
        timeout = variables.timeout({**environ, **job.variables})
        self._timeout = _OTHER_NODES_SECONDS if timeout is None else timeout
        if job.node_rank == 0:
            host, port = parse_address(job.address, "--address") if job.address else ("127.0.0.1", 0)
            self._server = StoreServer(host, port, secret=secret)
        self.address = self._server.address if self._server else job.address

    def reports(self):
        """Returns {rank: report} of the workers that have told why they fail."""
        told = {rank: report.parse(value) for rank, value in self.items(report.KEY).items()}
        return {int(rank): why for rank, why in told.items() if rank.isdecimal() and why}

    def tell_lost(self, rank, incarnation):
        """Tells the other workers that one was lost."""
        self.set(f"{lives.DEAD}{rank}", str(incarnation).encode())

    def joined(self):
        """Returns {rank: incarnation} of the workers that have become members."""
        return lives.incarnations(self.items(lives.JOINED))

    def excluded(self):
        """Returns {rank: incarnation} of the workers that the others go on without."""
        return lives.incarnations(self.items(lives.EXCLUDED))

    def is_over(self):
        """Returns whether a worker has told that the job has ended well."""
        return bool(self.items(lives.OVER))

    def server_address(self, index):
        """Returns what a server has told of where it listens, bytes, or None."""
        return self.items(f"{ADDRESS_KEY}{index}").get("")

    def servers_wanted(self):
        """Returns how many servers the workers' strategies have asked for."""
        wanted = (int(number) for number in self.items(REQUEST_KEY) if number.isdecimal())
        return max((number for number in wanted if number <= MOST_SERVERS), default=0)

    def summaries(self):
        """Returns what the servers have counted, a list of dicts; see summary.py."""
        return summary.parse(self.items(SUMMARY_KEY).values())

    def tell_ended(self):
        """Tells node 0 that the workers of this node have ended: it keeps the store and the servers until then."""
        if self._server is None and (self._job.num_servers or self._job.recovers):
            self.set(f"{_ENDED}{self._job.node_rank}", b"", _ASK_SECONDS)

    def others_have_ended(self):
        """Returns whether the other nodes' workers have ended; on node 0, and true after the job's timeout without a sign."""
        signs = {node: sign for node, sign in self.items(nodes.LIVE).items() if node != str(self._job.node_rank)}
        if self._waiting_since is None or signs != self._signs:
            self._waiting_since, self._signs = time.monotonic(), signs
        is_late = time.monotonic() - self._waiting_since > self._timeout
        return is_late or len(self.items(_ENDED)) >= self._job.num_nodes - 1

    def close(self):
        """Ends serving."""
        if self._server:
            self._server.close()

    def set(self, key, value, seconds=_TELL_SECONDS):
        """Stores bytes; silently not where node 0 does not answer in so many seconds, for then the job is over."""
        if self._server:
            self._server.set(key, value)
            return
        try:
            with StoreClient(self.address, self._secret, timeout=seconds) as store:
                store.set(key, value)
        except TfdistError:
            pass  # node 0 has ended

    def items(self, prefix):
        """Returns {key without the prefix: value}; empty where node 0 does not answer."""
        if self._server:
            items = self._server.items(prefix)
        else:
            items = self._ask(prefix)
        return {key[len(prefix) :]: value for key, value in items.items()}

    def _ask(self, prefix):
        try:
            with StoreClient(self.address, self._secret, timeout=_ASK_SECONDS) as store:
                return store.items(prefix)
        except TfdistError:
            return {}
