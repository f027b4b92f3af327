"""Workers are killed at random times and come again, over and over. TFDIST_SOAK=full (`make soak`): 200 times."""

import os
import re
import signal

import numpy as np
import pytest
from job import Job
from test_recovery_of_groups import check

NUM_WORKERS = 4
KILLS_PER_JOB = 25
NUM_KILLS = 200 if os.environ.get("TFDIST_SOAK") == "full" else 4

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(1800 if NUM_KILLS == 200 else 120)]


def members_of(job):
    """Returns the ranks of the processes that are members, as far as one can know from outside."""
    joined = {key.rpartition("/")[2]: int(value) for key, value in job.store.items("elastic/joined/").items()}
    return [rank for rank, p in job.running.items() if p.incarnation == 0 or joined.get(str(rank)) == p.incarnation]


def soak(folder, random, num_kills):
    """Kills members, but never the last one; returns the seconds that recoveries took."""
    with Job(
        NUM_WORKERS, folder, restarts=True, is_open=True, steps=10**9, environment={"TFDIST_TIMEOUT": "120"}
    ) as job:
        job.await_key("elastic/settings")
        killed = set()
        while len(killed) < num_kills:
            for _ in range(random.integers(1, 150)):
                job.look()
            members = [rank for rank in members_of(job) if job.running[rank].name not in killed]
            victims = random.permutation(members).tolist()[: random.integers(1, max(len(members), 2))]
            if len(members) > len(victims):
                for rank in victims:
                    killed.add(job.running[rank].name)
                    job.kill(rank, signal.SIGKILL)
            assert job.running, job.story()
        job.store.set("stop", b"")
        shares = check(job, job.await_end(timeout=120))
        told = re.findall(r"goes on with rank [0-9, ]+ after (\d+) ms", "".join(p.output for p in job.ended))
        for process in job.ended:
            is_late = process.popen.returncode == 1 and "came back too late: the job is over" in process.output
            assert is_late or process.popen.returncode in (0, -signal.SIGKILL), job.story()
        assert shares
    return [float(milliseconds) / 1e3 for milliseconds in told]


def test_workers_are_killed_and_come_again_over_and_over(tmp_path, capsys):
    seconds = []
    for number in range(-(-NUM_KILLS // KILLS_PER_JOB)):
        folder = tmp_path / str(number)
        folder.mkdir()
        seconds += soak(folder, np.random.default_rng(number), min(KILLS_PER_JOB, NUM_KILLS))
    with capsys.disabled():
        print(
            f"\n{NUM_KILLS} kills: a member went on after {np.median(seconds):.3f} s (median), {max(seconds):.3f} s (worst)"
        )
