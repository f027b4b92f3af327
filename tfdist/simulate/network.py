"""The way between a worker and the server."""

import dataclasses
import math

from tfdist.staleness.checks import expect_number


@dataclasses.dataclass(frozen=True)
class Network:
    """A link of its own for each worker: the server's is wide enough for all of them.

    Args:
      latency_seconds: float >= 0, of a message, one way.
      bytes_per_second: float > 0, each way.

    Raises:
      ConfigurationError: a value out of range.
    """

    latency_seconds: float = 0.0
    bytes_per_second: float = math.inf

    def __post_init__(self):
        expect_number("latency_seconds", self.latency_seconds)
        if self.bytes_per_second != math.inf:
            expect_number("bytes_per_second", self.bytes_per_second, exclusive=True)

    def seconds(self, num_bytes):
        """Returns how long a message of `num_bytes` is on its way."""
        return self.latency_seconds + num_bytes / self.bytes_per_second
