"""A client's connections to servers that are lost and come back: found again, while the calls that need them wait.

The native core sends what was under way once more, and the server applies nothing twice (native/parameter_server/
client_recovery.cc). Here a thread looks for the server and declares everything anew.
"""

import dataclasses
import os
import select
import threading
import time

from absl import logging

from tfdist.cluster import variables
from tfdist.errors import TfdistError

_PAUSES = (0.02, 0.5)
_STOP = 255  # no server's number
SERVERS_AT_MOST = 255
_JOIN_SECONDS = 15.0


@dataclasses.dataclass(frozen=True)
class Recovery:
    """How long a worker waits for a server that is lost, and where it looks for it.

    Args:
      seconds: float, how long a call waits.
      find: function of a server's index that returns its address now; None: it is where it was.
    """

    seconds: float = 60.0
    find: object = None


def chosen(recovery, environ=os.environ):
    """Returns a `Recovery` or None: what was given, or what TFDIST_RECOVER says where that is None; False is for none."""
    if recovery is None:
        return Recovery() if variables.recover(environ, default=False) else None
    return recovery or None


class Reconnector:
    """Watches over a client's connections.

    Args:
      recovery: a `Recovery`.
      num_servers: int.
      reconnect: function of a server's index and its address (None: as before) that connects with it.
      is_lost: function of a server's index, whether the native core has lost it.
      controls: function that returns the list of the control connections.
    """

    def __init__(self, recovery, num_servers, reconnect, is_lost, controls):
        self._recovery = recovery
        self._reconnect = reconnect
        self._is_lost = is_lost
        self._controls = controls
        self._epochs = [0] * num_servers
        self._changed = threading.Condition()  # guards _epochs
        self._closed = threading.Event()
        self._reader, self.wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if hasattr(os, "pipe2") else os.pipe()
        self._thread = threading.Thread(target=self._run, name="tfdist-reconnect", daemon=True)

    def start(self):
        """Begins to watch."""
        self._thread.start()

    def epoch(self, server=None):
        """Returns how often a server, or any, was connected with again."""
        with self._changed:
            return sum(self._epochs) if server is None else self._epochs[server]

    def await_newer(self, server, epoch):
        """Waits until there is a newer connection with a server than that of `epoch`; returns whether there is."""
        os.write(self.wake, bytes([server]))
        with self._changed:
            newer = self._changed.wait_for(
                lambda: self._closed.is_set() or self._epochs[server] > epoch, self._recovery.seconds
            )
            return newer and not self._closed.is_set()

    def advance(self, server):
        """Says that there is a new connection."""
        with self._changed:
            self._epochs[server] += 1
            self._changed.notify_all()

    def close(self):
        """Ends the thread; calls that wait fail."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        os.write(self.wake, bytes([_STOP]))
        if self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)
        os.close(self.wake)
        os.close(self._reader)

    def _run(self):
        while not self._closed.is_set():
            lost, pause, said = self._lost(), _PAUSES[0], set()
            while lost and not self._closed.is_set():
                lost = {server for server in lost if not self._try(server, said)}
                if lost:
                    self._closed.wait(pause)
                    pause = min(2 * pause, _PAUSES[1])

    def _lost(self):
        """Waits; returns the servers that the native core or a control connection has lost."""
        controls = {control.fileno(): server for server, control in enumerate(self._controls())}
        poll = select.poll()
        for descriptor in (self._reader, *controls):
            if descriptor >= 0:
                poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll()}
        lost = set()
        if self._reader in ready:
            told = set(os.read(self._reader, 4096)) - {_STOP}  # it may have come back since
            lost = {server for server in told if self._is_lost(server) or self._controls()[server].look() is False}
        busy = False
        for descriptor in ready & set(controls):
            state = self._controls()[controls[descriptor]].look()
            busy = busy or state is None
            if state is False:
                lost.add(controls[descriptor])
        if busy and not lost:
            time.sleep(_PAUSES[0])  # somebody is just being answered there
        return lost

    def _try(self, server, said):
        try:
            self._reconnect(server, self._recovery.find(server) if self._recovery.find else None)
        except (TfdistError, OSError, ValueError) as error:
            if server not in said:
                logging.info("parameter server %d is lost, and looked for: %s", server, error)
            said.add(server)
            return False
        logging.info("parameter server %d is connected again", server)
        return True
