"""The group of this process, formed once from the resolved cluster."""

import atexit
import os
import sys
import threading

from tfdist import cluster as clusters
from tfdist.cluster import variables
from tfdist.cluster.address import parse_address
from tfdist.cluster.store import StoreServer
from tfdist.collectives import ALL_REDUCE
from tfdist.comm import mesh, shared_memory, tuning
from tfdist.comm.group import DEFAULT_TIMEOUT_SECONDS, Group
from tfdist.errors import TfdistError

_RENDEZVOUS_SECONDS = 120.0
_TEMPORARY_FAILURE = 75  # EX_TEMPFAIL: the launcher starts this worker again
_lock = threading.Lock()  # guards _group
_group = None
_membership = None


def default_group(timeout=None):
    """Returns the group of all workers of the job; the first call forms it, blocking until everyone has come.

    Args:
      timeout: float seconds a wait may last; None means TFDIST_TIMEOUT, or 600. Only the first call's counts.

    Returns:
      A `Group`. With one worker it needs neither sockets nor the native library.

    Raises:
      RendezvousError: somebody did not come; says who.
    """
    global _group
    with _lock:
        if _group is None:
            _group = _form(clusters.current(), timeout)
            atexit.register(_leave)
        return _group


def is_formed():
    """Returns whether this process has its group."""
    return _group is not None


def membership():
    """Returns the `tfdist.elastic.membership.Membership` of the default group, or None where its members do not change."""
    return _membership


def reset_default_group():
    """Leaves the group, so that the next `default_group` forms a new one (on every rank)."""
    global _group, _membership
    with _lock:
        if _group is not None:
            _group.close()
            atexit.unregister(_leave)
        if _membership is not None:
            _membership.close()
        _group = _membership = None


def _form(cluster, timeout):
    if timeout is None:
        timeout = cluster.timeout or DEFAULT_TIMEOUT_SECONDS
    algorithm = variables.algorithm(os.environ, ALL_REDUCE)
    if cluster.world_size == 1:
        return Group(0, 1, timeout=timeout)
    if cluster.source == "tfdist run":
        from tfdist.launch import report

        report.install()
    if cluster.serves_store:
        host, port = parse_address(cluster.store_address)
        atexit.register(StoreServer(host, port, secret=cluster.secret).close)
    if variables.recover(os.environ, default=False):
        return _form_elastic(cluster, timeout, algorithm)
    group = _connect(cluster, timeout)
    try:
        group.algorithm = algorithm
        tuning.tune(group, variables.plan(os.environ))
    except TfdistError:  # on all ranks alike
        group.close()
        raise
    except BaseException as error:
        group.close(f"rank {group.rank} failed: {type(error).__name__}: {error}")
        raise
    return group


def _form_elastic(cluster, timeout, algorithm):
    from tfdist.elastic import forming

    global _membership
    group, _membership = forming.form(
        cluster, timeout=timeout, rendezvous_timeout=min(timeout, _RENDEZVOUS_SECONDS), algorithm=algorithm
    )
    clusters.cluster.chief_is(lambda: -1 if _membership.is_joining else group.chief)
    hook = sys.excepthook

    def leave_to_come_back(kind, error, traceback):
        hook(kind, error, traceback)
        if _membership is not None and _membership.is_excluded:
            sys.stderr.flush()
            os._exit(_TEMPORARY_FAILURE)

    sys.excepthook = leave_to_come_back
    return group


def _connect(cluster, timeout):
    formed = mesh.connect(
        cluster,
        timeout=min(timeout, _RENDEZVOUS_SECONDS),
        transport=variables.transport(os.environ),
        sockets_per_peer=variables.sockets_per_peer(os.environ),
    )
    settings = dict(timeout=timeout, segments=formed.segments, topology=formed.topology)
    try:
        return Group(cluster.rank, cluster.world_size, formed.sockets, **settings)
    finally:
        shared_memory.close_all(formed.segments)


def _leave():
    """Tells the peers at exit whether this rank finished or failed."""
    error = getattr(sys, "last_value", None)
    failure = f"rank {_group.rank} failed: {type(error).__name__}: {error}" if error is not None else None
    if _membership is not None:
        _membership.leave(well=failure is None)
    _group.close(failure)
