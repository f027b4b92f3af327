"""Every exception tfdist raises on purpose.

A user's mistake reads "what was expected. Received: name=value. What to do."; a distributed failure says which
operation failed on which rank, at which step, because of whom, after how long, and what to do next.
"""


class TfdistError(Exception):
    """Base class of all errors of tfdist."""


class ConfigurationError(TfdistError, ValueError):
    """The caller can fix it; raised before any socket is opened."""


class RendezvousError(TfdistError):
    """The group never formed; the text says who was missing."""


class AuthenticationError(TfdistError):
    """The peer did not prove knowledge of the job's secret."""


class TransportError(TfdistError):
    """The group is unusable from here on."""


class CollectiveTimeoutError(TransportError):
    """Nobody is known to be dead, but somebody has not arrived; the text says who."""


class WorkerLostError(TransportError):
    """A peer is gone.

    Args:
      message: the whole text.
      rank: the lost peer's rank, or -1 where it is unknown.
    """

    def __init__(self, message, rank=-1):
        super().__init__(message)
        self.rank = rank


class BelowMinimumWorkersError(TransportError):
    """So many workers were lost that fewer than min_workers are left."""


class MismatchError(TfdistError):
    """Ranks disagree about shape, dtype, model or step; the text names rank, tensor and both values."""


class ServerLostError(TransportError):
    """A parameter server is gone.

    Args:
      message: the whole text.
      server: its index, or -1 where it is unknown.
    """

    def __init__(self, message, server=-1):
        super().__init__(message)
        self.server = server


class StaleUpdateError(TfdistError):
    """An update was refused: it was computed for other parameters than the server has."""


class NonFiniteGradientError(TfdistError):
    """A gradient holds NaN or infinity; it was not pushed."""


class CorruptCheckpointError(TfdistError):
    """A checkpoint is damaged: a byte has changed, or it was cut off. The text names the file."""
