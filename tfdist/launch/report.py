"""A worker tells the launcher why it fails, so that the cause is shown and not one of its consequences.

The key `failure/<rank>` of the store holds JSON: type, message, time (seconds since the epoch), lost_rank (the rank
whose loss is the reason; null where the failure is this worker's own).
"""

import json
import os
import re
import sys
import time

from tfdist.cluster import variables
from tfdist.cluster.secret import given_secret
from tfdist.errors import TfdistError

KEY = "failure/"
CONSEQUENCES = (
    "WorkerLostError",
    "ServerLostError",
    "CollectiveTimeoutError",
    "TransportError",
    "RendezvousError",
    "StoreTimeoutError",
)
_LOST_RANK = re.compile(r"lost rank (\d+)|\[tfdist \w+ peer=(\d+)\]")
_MAX_MESSAGE = 4000
_SECONDS = 2.0
_installed = False


def install():
    """Reports this process's unhandled exception to the launcher. Does nothing outside `tfdist run`, or twice."""
    global _installed
    address, secret = os.environ.get("TFDIST_STORE", ""), given_secret(os.environ)
    rank = variables.integer(os.environ, "TFDIST_RANK")
    if _installed or not address or not secret or rank is None:
        return
    _installed = True
    before, process = sys.excepthook, os.getpid()

    def hook(kind, error, traceback):
        try:
            before(kind, error, traceback)
        finally:
            if os.getpid() == process and not issubclass(kind, KeyboardInterrupt):
                _send(address, secret, rank, describe(error))

    sys.excepthook = hook


def describe(error):
    """Returns the report of an exception: a dict of type, message, time and lost_rank."""
    chain = list(_chain(error))
    kinds = [type(link).__name__ for link in chain]
    lost = [found for found in map(_lost_rank, chain) if found is not None]
    return {
        "type": next((kind for kind in kinds if kind in CONSEQUENCES), kinds[0]),
        "message": str(error)[:_MAX_MESSAGE],
        "time": time.time(),
        "lost_rank": lost[0] if lost else None,
    }


def parse(value):
    """Returns a report read from the store, or None where it is none."""
    try:
        report = json.loads(value)
        return {
            "type": str(report["type"]),
            "message": str(report["message"]),
            "time": float(report["time"]),
            "lost_rank": None if report["lost_rank"] is None else int(report["lost_rank"]),
        }
    except (ValueError, TypeError, KeyError):
        return None


def lost_rank_in(text):
    """Returns the last lost rank that a text names, or None."""
    found = _LOST_RANK.findall(text)
    return int(found[-1][0] or found[-1][1]) if found else None


def _chain(error):
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _lost_rank(error):
    rank = getattr(error, "rank", None)
    if type(error).__name__ == "WorkerLostError" and isinstance(rank, int) and rank >= 0:
        return rank
    return lost_rank_in(str(error))


def _send(address, secret, rank, report):
    from tfdist.cluster.store import StoreClient

    try:
        with StoreClient(address, secret, timeout=_SECONDS) as store:
            store.set(f"{KEY}{rank}", json.dumps(report).encode())
    except TfdistError:
        pass  # the launcher is gone, or will go by what stderr says
