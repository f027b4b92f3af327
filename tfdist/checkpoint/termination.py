"""SIGTERM asks for an end; it is heard at the next step boundary."""

import signal
import threading
import time

EXIT_CODE = 128 + signal.SIGTERM


class TerminationNotice:
    """Hears SIGTERM from `begin()` to `end()`, where both are called by the main thread; elsewhere it hears nothing.

    A second SIGTERM does what the first would have done without it, and so does one that finds the main thread outside of
    `function`: the training has failed, and nobody would look.

    Args:
      function: str, the name of the function within which somebody looks whether the signal has come.
    """

    def __init__(self, function):
        self._function = function
        self._previous = None
        self._received_at = None

    def begin(self):
        """Takes the signal over."""
        self._received_at = None
        if threading.current_thread() is threading.main_thread() and self._previous is None:
            self._previous = signal.signal(signal.SIGTERM, self._hear) or signal.SIG_DFL

    def end(self):
        """Gives the signal back. Calling it again does nothing."""
        if self._previous is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    @property
    def is_received(self):
        """Whether somebody has asked for the end."""
        return self._received_at is not None

    def seconds_ago(self):
        """Returns how long ago, in seconds; 0.0 if nobody has."""
        return time.monotonic() - self._received_at if self.is_received else 0.0

    def _hear(self, number, frame):
        if self._received_at is not None or not self._is_within(frame):
            self.end()
            signal.raise_signal(signal.SIGTERM)
            return
        self._received_at = time.monotonic()

    def _is_within(self, frame):
        while frame is not None and frame.f_code.co_name != self._function:
            frame = frame.f_back
        return frame is not None
