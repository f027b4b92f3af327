"""What the workers of test_heartbeat.py run; each returns what it saw."""

import os
import signal
import subprocess
import time

import numpy as np

from tfdist.comm.default import default_group
from tfdist.errors import WorkerLostError


def reduce_with_one_stopped(stopped, seconds):
    """All ranks sum some numbers; rank `stopped` stops for `seconds` before that, all its threads."""
    group = default_group()
    group.barrier()
    begin = time.monotonic()
    if group.rank == stopped:
        helper = subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
        helper.wait()
    try:
        total = float(group.all_reduce(np.ones(1000), name="the step")[0])
    except WorkerLostError as error:
        return {"lost": error.rank, "text": str(error), "seconds": time.monotonic() - begin}
    return {"total": total, "seconds": time.monotonic() - begin}


def stopped_while_it_waits(seconds):
    """Rank 0 is stopped for `seconds` while it waits for rank 1, whose thread sleeps."""
    group = default_group()
    group.barrier()
    helper = None
    if group.rank == 0:
        pid = os.getpid()
        helper = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -STOP {pid}; sleep {seconds}; kill -CONT {pid}"])
    else:
        time.sleep(seconds + 1)
    total = float(group.all_reduce(np.ones(1000), name="the step")[0])
    if helper is not None:
        helper.wait()
    return {"total": total}
