"""What makes a server outlive its process: it writes snapshots in the background, and finds its state again."""

import dataclasses
import threading

from absl import logging

from tfdist.errors import TfdistError
from tfdist.parameter_server import partner, state
from tfdist.parameter_server.snapshots import Snapshots

_JOIN_SECONDS = 10.0
_BURST_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Keeping:
    """How a server keeps its state.

    Args:
      folder: path of the snapshots, of this server only.
      seconds: float, between two of them while there are updates.
      keep: int, how many stay.
      offer_seconds: float, how long a restored server waits for what its workers have.
      find: function of a server's index that returns its address, for replicas; None: there are none.
      incarnation: int, how often there was a server before, whose state is taken.
    """

    folder: str
    seconds: float = 10.0
    keep: int = 2
    offer_seconds: float = 2.0
    find: object = None
    incarnation: int = 0


class Keeper:
    """Writes the snapshots of one server.

    Args:
      keeping: a `Keeping`.
      secret: bytes, the job's secret.
      stores: function that returns the list of all `Store`s.
    """

    def __init__(self, keeping, secret, stores):
        self._keeping = keeping
        self._secret = secret
        self._stores = stores
        self._snapshots = Snapshots(keeping.folder, keeping.keep)
        if not keeping.incarnation:
            self._snapshots.clear()
            self._snapshots = Snapshots(keeping.folder, keeping.keep)
        self._lock = threading.Lock()  # one snapshot at a time
        self._due = threading.Event()
        self._stopped = threading.Event()
        self._thread = None
        self._written = None

    def found(self):
        """Returns `(description, blocks, is_newest)` of each store that there was; `is_newest`: a replica's."""
        blocks = self._snapshots.newest() if self._keeping.incarnation else None
        return [self._freshest(*one) for one in state.split(blocks or ())]

    def _freshest(self, description, blocks):
        other = description["declaration"].get("partner")
        if other and self._keeping.find:
            try:
                address = self._keeping.find(other["server"])
                ((_, theirs),) = state.split(partner.fetch(address, self._secret, other["store"]))
                if state.pushes(theirs[0]) >= state.pushes(blocks[0]):
                    return description, theirs, True
            except (TfdistError, OSError, ValueError) as error:
                logging.warning("parameter server: no replica of %r: %s", description["name"], error)
        return description, blocks, False

    @property
    def keeping(self):
        return self._keeping

    def start(self):
        """Begins to write."""
        self._thread = threading.Thread(target=self._run, name="tfdist-snapshots", daemon=True)
        self._thread.start()

    def write(self):
        """Writes a snapshot now, unless nothing has changed."""
        with self._lock:
            stores = self._stores()
            marks = [store.mark() for store in stores]
            if marks == self._written:
                return
            self._snapshots.write(block for store in stores for block in state.save(store))
            self._written = marks

    def write_soon(self):
        """Has one written in the background: who belongs to the job has changed."""
        self._due.set()

    def stop(self, *, clear):
        """Ends the writing; `clear` removes all that was written."""
        self._stopped.set()
        self._due.set()
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)
        if clear:
            self._snapshots.clear()

    def _run(self):
        while not self._stopped.is_set():
            if self._due.wait(self._keeping.seconds):
                self._stopped.wait(_BURST_SECONDS)
                self._due.clear()
            if self._stopped.is_set():
                return
            try:
                self.write()
            except OSError as error:  # the disk is full: training goes on, and the next one may succeed
                logging.warning("parameter server: no snapshot in %s: %s", self._keeping.folder, error)
