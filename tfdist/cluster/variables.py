"""Every environment variable of tfdist that concerns the cluster, and how the launchers' variables are read.

Set by `tfdist run` for its workers, all or none:
    TFDIST_RANK, TFDIST_WORLD_SIZE               this worker, and how many there are
    TFDIST_LOCAL_RANK, TFDIST_LOCAL_WORLD_SIZE   the same, among the workers of this host
    TFDIST_STORE                                 "host:port" of the rendezvous store
    TFDIST_INITIAL_WORKERS   how many the job starts with, ranks 0 to this - 1; the other ranks are free places
    TFDIST_INCARNATION       0 in the first process that has this place, then 1, 2, ...; servers have it too
    TFDIST_RECOVER           1: the job goes on without a worker that is lost; 0: it ends. Yours, 0, is --no-recover
    TFDIST_MIN_WORKERS       fewer workers than these end the job; yours is the default of --min-workers
and, where the job has parameter servers (--servers), or a strategy starts them:
    TFDIST_NUM_SERVERS   how many there are; for workers and servers
    TFDIST_SERVER        in a server, instead of TFDIST_RANK: which one it is, from 0
and, where a lost worker or server does not end the job:
    TFDIST_RECOVER       1: the others go on, and wait for a server to come back; 0: they fail
    TFDIST_INCARNATION   how often this process has been started again, 0 at first
    TFDIST_SERVERS_ON_REQUEST  1: the launcher starts the servers that a strategy asks for in the store

Set by you where the default does not fit:
    TFDIST_SECRET_FILE   a file with the job's secret, or
    TFDIST_SECRET        the secret itself; needed where workers run on several hosts without `tfdist run`
    TFDIST_ADDRESS       the address of this host at which the other workers reach this one
    TFDIST_PORT          the port of the store, under Slurm, MPI and torchrun
    TFDIST_TIMEOUT       seconds to wait for other workers in a collective, and at most 120 of them at the start
    TFDIST_HEARTBEAT_SECONDS  how long a worker may be silent, though asked, before it counts as lost; default: 2; 0: for ever
    TFDIST_TRANSPORT     how workers of one host exchange data: auto, shm (shared memory, or an error) or tcp
    TFDIST_SOCKETS_PER_PEER  how many sockets, 1 to 16, two workers share; rank 0's holds; default: 1
    TFDIST_ALGORITHM     the all-reduce algorithm for every size, such as ring; default: chosen by size
    TFDIST_PLAN          a file: where it exists its rates are used, else those measured are saved to it, so that later
                         jobs make the same choices; or "default": nothing is measured, ordinary rates are used
    TFDIST_TLS           1: every connection is encrypted (the same on all hosts); `tfdist run --tls` sets it
    TFDIST_TLS_CERT, TFDIST_TLS_KEY, TFDIST_TLS_CA  files (PEM): this host's certificate, its key, and who must have signed the
                         others' (default: that very certificate); without them each process draws a certificate of its own
    TFDIST_SNAPSHOTS     a folder in which parameter servers keep their snapshots; default: the system's temporary one
    TFDIST_STRATEGY      the strategy that `tfdist.strategy()` makes when it is given no name
    TFDIST_FAULTS        faults that `tfdist.testing.FaultInjector` has scheduled, as JSON; for tests
An empty variable counts as not set.
"""

import dataclasses
import math

from tfdist.errors import ConfigurationError

TRANSPORTS = ("auto", "shm", "tcp")
DEFAULT_PLAN = "default"
DEFAULT_HEARTBEAT_SECONDS = 2.0


def integer(environ, name, default=None):
    """Reads an integer >= 0; `default` where the variable is not set."""
    text = environ.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal()):
        raise ConfigurationError(
            f"{name} is expected to be an integer >= 0. Received: {name}={text!r}. Correct it, or unset it."
        )
    return int(text)


def place(environ, rank_name, size_name, *, required=True):
    """Reads a rank and the size it belongs to.

    Args:
      environ: the variables.
      rank_name: the variable with the rank.
      size_name: the variable with the number of ranks.
      required: bool; False allows that neither is set.

    Returns:
      `(rank, size)`, or None where neither is set.

    Raises:
      ConfigurationError: one is set without the other, or rank >= size.
    """
    rank, size = integer(environ, rank_name), integer(environ, size_name)
    if rank is None and size is None and not required:
        return None
    if rank is None or size is None:
        missing, present = (rank_name, size_name) if rank is None else (size_name, rank_name)
        raise ConfigurationError(
            f"{rank_name} and {size_name} are expected together. Received: {present}={environ.get(present, '')!r} "
            f"without {missing}. Set both, or neither."
        )
    if rank >= size:
        raise ConfigurationError(
            f"{rank_name} is expected to be less than {size_name}. Received: {rank_name}={rank}, {size_name}={size}. "
            "Ranks count from 0."
        )
    return rank, size


def port(environ, default):
    """Returns TFDIST_PORT, or the default."""
    value = integer(environ, "TFDIST_PORT", default)
    if not 1 <= value <= 65535:
        raise ConfigurationError(
            f"TFDIST_PORT is expected to be from 1 to 65535. Received: TFDIST_PORT={value}. "
            "Set it to a free port, the same on all ranks."
        )
    return value


def timeout(environ):
    """Returns TFDIST_TIMEOUT in seconds, or None where it is not set."""
    text = environ.get("TFDIST_TIMEOUT", "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigurationError(
            "TFDIST_TIMEOUT is expected to be a number of seconds > 0. "
            f"Received: TFDIST_TIMEOUT={text!r}. Correct it, or unset it."
        )
    return value


def recover(environ, default=True):
    """Reads TFDIST_RECOVER, a bool; `default` where it is not set."""
    text = environ.get("TFDIST_RECOVER", "")
    if text not in ("", "0", "1"):
        raise ConfigurationError(
            f"TFDIST_RECOVER is expected to be 0 or 1. Received: TFDIST_RECOVER={text!r}. Correct it, or unset it."
        )
    return text == "1" if text else default


def min_workers(environ):
    """Returns TFDIST_MIN_WORKERS, 1 where it is not set."""
    return max(1, integer(environ, "TFDIST_MIN_WORKERS", 1))


def incarnation(environ):
    """Returns TFDIST_INCARNATION, 0 where it is not set."""
    return integer(environ, "TFDIST_INCARNATION", 0)


def starts_servers_on_request(environ):
    """Reads TFDIST_SERVERS_ON_REQUEST, whether the launcher starts the servers that a strategy asks for."""
    return integer(environ, "TFDIST_SERVERS_ON_REQUEST", 0) > 0


def initial_workers(environ, world_size):
    """Returns TFDIST_INITIAL_WORKERS, `world_size` where it is not set."""
    return integer(environ, "TFDIST_INITIAL_WORKERS", world_size)


def heartbeat_seconds(environ):
    """Returns TFDIST_HEARTBEAT_SECONDS, 2.0 where it is not set; 0 means that silence proves nothing."""
    text = environ.get("TFDIST_HEARTBEAT_SECONDS", "")
    if not text:
        return DEFAULT_HEARTBEAT_SECONDS
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value != 0 and not 0.1 <= value <= 3600:
        raise ConfigurationError(
            "TFDIST_HEARTBEAT_SECONDS is expected to be a number of seconds from 0.1 to 3600, or 0. "
            f"Received: TFDIST_HEARTBEAT_SECONDS={text!r}. Correct it, or unset it."
        )
    return value


def transport(environ):
    """Reads TFDIST_TRANSPORT: "auto" where it is not set."""
    value = environ.get("TFDIST_TRANSPORT", "") or "auto"
    if value not in TRANSPORTS:
        raise ConfigurationError(
            f"TFDIST_TRANSPORT is expected to be one of {', '.join(TRANSPORTS)}. "
            f"Received: TFDIST_TRANSPORT={value!r}. Correct it, or unset it."
        )
    return value


@dataclasses.dataclass(frozen=True)
class Tls:
    """Paths of this host's certificate, of its key and of the authority's certificate; "" where they are not given."""

    certificate: str = ""
    key: str = ""
    authority: str = ""


def tls(environ):
    """Reads TFDIST_TLS and what belongs to it: a `Tls`, or None where connections are not encrypted."""
    text = environ.get("TFDIST_TLS", "")
    found = Tls(*(environ.get(f"TFDIST_TLS_{name}", "") for name in ("CERT", "KEY", "CA")))
    if text not in ("", "0", "1"):
        raise ConfigurationError(
            f"TFDIST_TLS is expected to be 0 or 1. Received: TFDIST_TLS={text!r}. Correct it, or unset it."
        )
    if bool(found.certificate) != bool(found.key) or (found.authority and not found.certificate):
        raise ConfigurationError(
            "TFDIST_TLS_CERT and TFDIST_TLS_KEY are expected together, and with TFDIST_TLS_CA. "
            f"Received: TFDIST_TLS_CERT={found.certificate!r}, TFDIST_TLS_KEY={found.key!r}, "
            f"TFDIST_TLS_CA={found.authority!r}. Set both, or none to have a certificate drawn."
        )
    return found if text == "1" else None


def sockets_per_peer(environ):
    """Returns TFDIST_SOCKETS_PER_PEER, 1 where it is not set."""
    value = integer(environ, "TFDIST_SOCKETS_PER_PEER", 1)
    if not 1 <= value <= 16:
        raise ConfigurationError(
            f"TFDIST_SOCKETS_PER_PEER is expected to be from 1 to 16. Received: TFDIST_SOCKETS_PER_PEER={value}. "
            "Correct it, or unset it."
        )
    return value


def algorithm(environ, known):
    """Reads TFDIST_ALGORITHM, one of the names `known`; None where it is not set."""
    value = environ.get("TFDIST_ALGORITHM", "") or None
    if value is not None and value not in known:
        raise ConfigurationError(
            f"TFDIST_ALGORITHM is expected to be one of {', '.join(known)}. "
            f"Received: TFDIST_ALGORITHM={value!r}. Correct it, or unset it to have the fastest chosen."
        )
    return value


def plan(environ):
    """Reads TFDIST_PLAN, a path or `DEFAULT_PLAN`; None where it is not set."""
    return environ.get("TFDIST_PLAN", "") or None


def faults(environ):
    """Reads TFDIST_FAULTS, JSON; None where it is not set. See `tfdist.testing.fault.from_environment`."""
    return environ.get("TFDIST_FAULTS", "") or None


def snapshots(environ):
    """Returns TFDIST_SNAPSHOTS, a folder, or None where it is not set."""
    return environ.get("TFDIST_SNAPSHOTS", "") or None
