"""What the supervisor waits for: processes that end, signals of the user, and output that nobody reads any more."""

import contextlib
import queue
import signal
import threading

FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP")
BROKEN_PIPE = "SIGPIPE"
ADD_WORKER = "SIGUSR1"


class Events:
    """A queue of `Worker`s that have ended and of names of signals. Thread safe."""

    def __init__(self):
        self._queue = queue.SimpleQueue()  # safe to fill from a signal handler

    def on_exit(self, process):
        """To be given to each `Worker`."""
        self._queue.put(process)

    def on_broken_output(self):
        """To be given to the `Output`."""
        self._queue.put(BROKEN_PIPE)

    def next(self, seconds=None):
        """Returns a signal's name, a process that has ended, or None when `seconds` have passed without either."""
        try:
            return self._queue.get(timeout=seconds)
        except queue.Empty:
            return None

    @contextlib.contextmanager
    def of_signals(self, names=FORWARDED):
        """Turns signals to this process into events, from before the first worker starts."""
        if threading.current_thread() is not threading.main_thread():
            yield  # the main thread's handlers stay in charge
            return
        before = {}
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # exit codes would be lost
            before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for name in names:
            number = getattr(signal, name)
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
                before[number] = signal.signal(number, lambda number, _: self._queue.put(signal.Signals(number).name))
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
