"""`python -m tests.fuzz.strangers_cost [--count 1000] [--rounds 8]`: what strangers cost a running job.

Two workers of `tfdist run` reduce 1 MiB a step around a ring, beside a parameter server. Three kinds of rounds take turns: no strangers;
strangers who come to doors that nobody opens, which shows what they themselves take of this machine; and strangers, half of
them at the job's store and half at the parameter server. Prints the median step of each, and the median ratio of neighbours.
"""

import argparse
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.strangers import Strangers, record
from tfdist.cluster.address import format_address

_ROOT = Path(__file__).resolve().parents[2]
_WAIT_SECONDS = 60.0
_WORKER = """
import json, os, sys, time
import numpy as np
from tfdist.cluster.server import ADDRESS_KEY
from tfdist.cluster.store import StoreClient
from tfdist.comm.default import default_group

group, folder = default_group(), sys.argv[1]
if group.rank == 0:
    with StoreClient(os.environ["TFDIST_STORE"], os.environ["TFDIST_SECRET"].encode()) as store:
        addresses = [os.environ["TFDIST_STORE"], store.get(f"{ADDRESS_KEY}0").decode()]
    with open(folder + "/writing", "w") as file:
        json.dump(addresses, file)
    os.rename(folder + "/writing", folder + "/addresses")
values, matrix, steps, is_over = np.ones(1 << 18, np.float32), np.ones((200, 200)), [], False
while not is_over:
    begin = time.monotonic()
    matrix = matrix @ matrix % 1.0
    group.all_reduce(values)
    steps.append((begin, time.monotonic() - begin))
    if len(steps) % 20 == 0:
        is_over = group.all_reduce(np.array([os.path.exists(folder + "/over")], np.int32))[0] > 0
if group.rank == 0:
    with open(folder + "/steps", "w") as file:
        json.dump(steps, file)
"""


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.strangers_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="strangers of a round (1000)")
    parser.add_argument("--rounds", type=int, default=8, help="of each kind (8)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a round (4)")
    parser.add_argument("--visit", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.visit:
        return _visit(chosen)
    with tempfile.TemporaryDirectory() as folder:
        rounds, steps = _measure(chosen, folder)
    _report(rounds, steps)
    return int(any(let_in for _, _, let_in in rounds))


def _visit(chosen):
    """The process of the strangers."""
    secret = os.environ.pop("TFDIST_SECRET").encode()
    identities = (b"", b'["control", 0, 1]')
    recordings = [record(address, secret, identity) for address, identity in zip(chosen.visit[:2], identities)]
    visits = zip(chosen.visit[2:], recordings)
    crowds = [Strangers(door, recording, chosen.count // 2, chosen.seconds) for door, recording in visits]
    for crowd in crowds:
        crowd.join(chosen.seconds + 10)
    print(json.dumps([sum(crowd.num_let_in for crowd in crowds), sum(crowd.num_came for crowd in crowds)]))
    return 0


def _measure(chosen, folder):
    secret = secrets.token_hex(32)
    environ = {**os.environ, "TFDIST_SECRET": secret, "PYTHONPATH": str(_ROOT)}
    script = Path(folder, "worker.py")
    script.write_text(_WORKER)
    command = [
        sys.executable,
        "-m",
        "tfdist",
        "run",
        "-n2",
        "--servers",
        "1",
        "--strategy",
        "async",
        str(script),
        folder,
    ]
    job = subprocess.Popen(command, env=environ, cwd=_ROOT, stdout=sys.stderr, start_new_session=True)
    rounds = []
    try:
        deadline = time.monotonic() + _WAIT_SECONDS
        while not Path(folder, "addresses").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        addresses = json.loads(Path(folder, "addresses").read_text())
        for number in range(3 * chosen.rounds):
            begin, let_in = time.monotonic(), 0
            with socket.create_server(("127.0.0.1", 0), backlog=4096) as nobody:
                closed = [format_address(*nobody.getsockname())] * 2
                if number % 3 == 0:
                    time.sleep(chosen.seconds)
                else:
                    let_in = _strangers(chosen, addresses, closed if number % 3 == 1 else addresses, environ)
            rounds.append((begin, time.monotonic(), let_in))
        Path(folder, "over").touch()
        job.wait(_WAIT_SECONDS)
        return rounds, json.loads(Path(folder, "steps").read_text())
    finally:
        if job.poll() is None:
            job.terminate()
            job.wait(_WAIT_SECONDS)


def _strangers(chosen, addresses, doors, environ):
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.strangers_cost",
        "--count",
        str(chosen.count),
        "--seconds",
        str(chosen.seconds),
    ]
    command = ["nice", "-n", "19", *command, "--visit", *addresses, *doors]
    done = subprocess.run(command, env=environ, cwd=_ROOT, capture_output=True, text=True, timeout=_WAIT_SECONDS)
    let_in, came = json.loads(done.stdout)
    sys.stderr.write(f"{came} strangers came, {let_in} got in\n")
    return let_in


def _report(rounds, steps):
    medians = [statistics.median(took for begin, took in steps if first <= begin < last) for first, last, _ in rounds]
    alone, outside, inside = (medians[kind::3] for kind in range(3))
    for name, kind in (
        ("no strangers", alone),
        ("strangers before closed doors", outside),
        ("strangers at the job", inside),
    ):
        ratios = sorted(value / first for value, first in zip(kind, alone))
        middle, low, high = statistics.median(ratios), ratios[0], ratios[-1]
        print(f"{name}: {statistics.median(kind) * 1e3:.3f} ms a step, ratio {middle:.3f} ({low:.3f} to {high:.3f})")
    print(f"the job's own part: {statistics.median(a / b for a, b in zip(inside, outside)):.3f}")
    print(f"strangers that got in: {sum(let_in for _, _, let_in in rounds)}")


if __name__ == "__main__":
    sys.exit(main())
