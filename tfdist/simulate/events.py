"""Virtual time: what happens when, in order; it costs no real time to wait."""

import heapq


class EventQueue:
    """Runs actions in the order of their times; at equal times, in the order in which they were planned.

    Attributes:
      now: float, virtual seconds since the start.
    """

    def __init__(self):
        self.now = 0.0
        self._events = []  # heap of (time, number, action)
        self._num_planned = 0

    def after(self, seconds, action):
        """Plans a call of `action()` for `seconds` (>= 0) from now."""
        heapq.heappush(self._events, (self.now + seconds, self._num_planned, action))
        self._num_planned += 1

    def run(self, is_over):
        """Runs events until `is_over()` or until none is left; planned events of a run that is over never happen."""
        while self._events and not is_over():
            self.now, _, action = heapq.heappop(self._events)
            action()
