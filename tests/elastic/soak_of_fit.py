"""`fit` under `tfdist run`, while something happens to a worker or a server every few seconds; tells what that cost.

Faults: SIGKILL at a random moment, SIGKILL at a phase of `fit`, SIGSTOP for longer or shorter than the heartbeat allows, a
connection between two workers that is closed, and SIGKILL of a parameter server. In the end all workers have the same
weights, the model has learned, and no process, segment of shared memory or file of the job is left. One worker, the witness,
is spared, for its memory, threads and descriptors to be watched.

    python -m tests.elastic.soak_of_fit --strategy ring --seconds 1200
"""

import argparse
import collections
import json
import os
import pathlib
import random
import re
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from tests.elastic.soaked_fit import NOTE

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = pathlib.Path(__file__).with_name("soaked_fit.py")
PHASES = {
    "ring": ["step", "reducing", "reduced", "committed", "step_end", "epoch_end", "validation"],
    "sync": ["step", "step_end", "epoch_end", "validation"],
    "async": ["step", "step_end", "epoch_end", "validation"],
}
MEMBER_SECONDS = 1.5  # a worker that has finished a step in this time takes part
PATIENCE_SECONDS = 60.0  # within which training must go on
WARM_UP_SECONDS = 60.0


class Job:
    """One run of `soaked_fit.py`, watched from outside."""

    def __init__(self, folder, strategy, num_workers):
        self.folder = folder
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("TFDIST_", "OMP_", "TF_"))}
        environment = {**kept, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "",
                       "SOAK_FOLDER": str(folder)}  # fmt: skip
        options = ["-n", str(num_workers), "--max-restarts", "100000"]
        command = [sys.executable, "-m", "tfdist", "run", *options, str(SCRIPT), str(folder), strategy]
        self.output = open(folder / "output", "w+", encoding="utf-8")
        self.launcher = subprocess.Popen(
            command, env=environment, stdout=self.output, stderr=subprocess.STDOUT, cwd=folder
        )

    def notes(self, since):
        """Returns `{(rank, pid): times}` of the steps that ended after `since`, and the furthest epoch."""
        found, epoch = {}, 0
        for path in self.folder.glob("steps-*"):
            times = np.frombuffer(path.read_bytes()[-NOTE.size * 4096 :], "d").reshape(-1, 2)
            if len(times) and times[-1, 0] > since:
                _, rank, pid = path.name.split("-")
                found[int(rank), int(pid)] = times[times[:, 0] > since, 0]
                epoch = max(epoch, int(times[-1, 1]))
        return found, epoch

    def longest_pause(self, at, within=6.0):
        """Returns the longest time between two steps of a worker in the seconds after `at`: to trace again takes some, too."""
        longest = []
        for path in self.folder.glob("steps-*"):
            times = np.frombuffer(path.read_bytes(), "d").reshape(-1, 2)[:, 0]
            times = times[(times > at - 1.0) & (times < at + within)]
            if len(times) > 1 and times[0] < at and times[-1] > at + within / 2:
                longest.append(float(np.diff(times).max()))
        return max(longest, default=None)

    def members(self):
        """Returns the list of `(rank, pid)` that take part now."""
        found, _ = self.notes(time.time() - MEMBER_SECONDS)
        return [(rank, pid) for rank, pid in sorted(found) if os.path.exists(f"/proc/{pid}")]

    def servers(self):
        """Returns the processes of parameter servers."""
        return [pid for pid in self.processes() if b"tfdist.parameter_server" in _read(f"/proc/{pid}/cmdline")]

    def processes(self):
        """Returns the processes that this job has started, those of a killed parent too."""
        mark = f"SOAK_FOLDER={self.folder}".encode()
        return [int(p.name) for p in pathlib.Path("/proc").glob("[0-9]*") if mark in _read(p / "environ")]

    def story(self):
        """Returns the end of what the job has said."""
        return (self.folder / "output").read_text(errors="replace")[-6000:]


def _read(path):
    try:
        return pathlib.Path(path).read_bytes()
    except OSError:
        return b""


def _end_of(pid):
    """Waits until a process has ended; returns when, or None."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return time.time()
    try:
        ready, _, _ = select.select([descriptor], [], [], 10.0)
        return time.time() if ready else None
    finally:
        os.close(descriptor)


def disturb(job, chance, phases, witness):
    """Does something to one process; returns what, and when, or None where too few take part."""
    members = job.members()
    victims = [member for member in members if member[0] != witness]
    if len(members) < 2 or not victims:
        return None
    rank, pid = chance.choice(victims)
    servers = job.servers()
    kinds = (
        ["kill"] * 3
        + ["kill at a phase"] * 4
        + ["long stop", "short stop"]
        + (["kill of a server"] * 2 if servers else ["drop"])
    )
    kind = chance.choice(kinds)
    order = None
    try:
        if kind == "kill of a server":
            pid = chance.choice(servers)
            os.kill(pid, signal.SIGKILL)
        elif kind == "kill":
            os.kill(pid, signal.SIGKILL)
        elif kind == "kill at a phase":
            order = {"kind": "kill", "phase": chance.choice(phases)}
            kind = f"kill at {order['phase']}"
        elif kind == "drop":
            order = {"kind": "drop", "peer": chance.choice([other for other, _ in members if other != rank])}
        else:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(3.5 if kind == "long stop" else 1.0)
            os.kill(pid, signal.SIGCONT)
        if order:
            (job.folder / f"order-{pid}").write_text(json.dumps(order))
            os.kill(pid, signal.SIGUSR2)
    except ProcessLookupError:
        return None
    ended_at = _end_of(pid) if "kill" in kind else time.time()
    return kind, (rank, pid), ended_at


def recovery_of(job, victim, ended_at):
    """Waits until all others have finished a step; returns the seconds that took the last of them."""
    others = [member for member in job.notes(ended_at - MEMBER_SECONDS)[0] if member != victim]
    deadline = time.time() + PATIENCE_SECONDS
    while True:
        found, _ = job.notes(ended_at)
        waiting = [m for m in others if m not in found and os.path.exists(f"/proc/{m[1]}")]
        if not waiting:
            return max((float(found[m][0]) - ended_at for m in others if m in found), default=None)
        if time.time() > deadline or job.launcher.poll() is not None:
            raise AssertionError(f"{waiting} have not gone on\n{job.story()}")
        time.sleep(0.02)


def sample(pid):
    """Returns memory in MiB, threads and descriptors of a process, or None."""
    status = _read(f"/proc/{pid}/status").decode()
    if "VmRSS" not in status:
        return None
    value = {name: int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads")}
    return value["VmRSS"] / 1024, value["Threads"], len(os.listdir(f"/proc/{pid}/fd"))


def soak(folder, strategy, *, num_workers, seconds, interval, seed, witness):
    """Returns a dict of what happened, and what it cost; raises AssertionError where something is wrong."""
    chance, before = random.Random(seed), set(os.listdir("/dev/shm"))
    job, counts, recoveries, samples, losses = Job(folder, strategy, num_workers), collections.Counter(), [], [], []
    began = time.time()
    while len(job.members()) < num_workers:
        assert time.time() < began + 120 and job.launcher.poll() is None, job.story()
        time.sleep(0.2)
    began = time.time()
    while time.time() < began + seconds:
        next_at = time.time() + interval * chance.uniform(0.5, 1.5)
        done = disturb(job, chance, PHASES[strategy], witness)
        assert job.launcher.poll() is None, job.story()
        if done is not None and done[2] is not None:
            kind, victim, ended_at = done
            took = recovery_of(job, victim, ended_at)
            counts[kind] += 1
            if "kill" in kind and "server" not in kind and took is not None:
                recoveries.append(took)
                losses.append(ended_at)
            print(
                f"{time.time() - began:6.0f} s  {kind:18} {victim}: {took if took is None else round(took, 3)}",
                flush=True,
            )
        elif done is not None:
            counts[f"{done[0]}, not reached"] += 1
        for rank, pid in job.members():
            if rank == witness and time.time() > began + WARM_UP_SECONDS:
                samples.append((sample(pid), sample(job.launcher.pid)))
        time.sleep(max(0.0, next_at - time.time()))
    while len(job.members()) < 2:
        assert job.launcher.poll() is None, job.story()
        time.sleep(0.2)
    (folder / "stop.new").write_text(str(job.notes(time.time() - 30)[1] + 5))
    (folder / "stop.new").rename(folder / "stop")
    assert job.launcher.wait(180) == 0, job.story()
    time.sleep(1.0)
    assert not job.processes(), "processes are left"
    left = set(os.listdir("/dev/shm")) - before
    assert not left, f"shared memory is left: {left}"
    ends = [dict(np.load(path)) for path in sorted(folder.glob("end-*.npz"))]
    for end in ends[1:]:
        assert all(np.array_equal(end[name], ends[0][name]) for name in end), "workers end with different weights"
    result = {
        "strategy": strategy,
        "faults": dict(counts),
        "kills": sum(n for k, n in counts.items() if "kill" in k and "not" not in k),
    }
    result |= {"workers at the end": len(ends), "accuracy": round(float(ends[0]["accuracy"]), 4)}
    if recoveries:
        result |= {"recovery median s": round(statistics.median(recoveries), 3), "worst s": round(max(recoveries), 3),
                   "over 0.5 s": sum(r > 0.5 for r in recoveries), "of": len(recoveries)}  # fmt: skip
        pauses = [pause for at in losses if (pause := job.longest_pause(at)) is not None]
        result |= {
            "longest pause after a kill, median s": round(statistics.median(pauses), 3),
            "its worst s": round(max(pauses), 3),
        }
    if samples:
        quarter = max(1, len(samples) // 4)
        for i, name in enumerate(("witness", "launcher")):
            first, last = (
                [statistics.median(s[i][k] for s in part) for k in range(3)]
                for part in (samples[:quarter], samples[-quarter:])
            )
            result[f"{name}: MiB, threads, descriptors"] = f"{first} -> {last}"
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", choices=PHASES, default="ring")
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between two faults, on average")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--witness", type=int, help="the rank that is spared")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(pathlib.Path(folder), options.strategy, num_workers=options.workers, seconds=options.seconds,
                      interval=options.interval, seed=options.seed, witness=options.witness)  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
