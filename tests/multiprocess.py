"""Runs a function of a test module on several worker processes, as `tfdist run` would start them.

    results = run_workers(2, "tests.strategies.fit_cases:plain", epochs=3)

starts two processes; each calls `plain(epochs=3)` and returns a dict of what JSON or NumPy can hold. `results` is the list
of these dicts in the order of ranks. A store is served by the test itself; nothing is pickled.
"""

import importlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_TIMEOUT_SECONDS = 240.0


class WorkersFailed(AssertionError):
    """Some worker did not end with exit code 0; the text holds the end of everybody's output."""


def run_workers(num_workers, function, *, timeout=DEFAULT_TIMEOUT_SECONDS, environment=None, check=True, **arguments):
    """Runs `function` on `num_workers` new processes.

    Args:
      num_workers: int; 1 runs without a group.
      function: "package.module:name" of a function that takes `arguments` and returns a dict.
      timeout: float seconds for all of it.
      environment: dict of further environment variables; a value that is a list has one entry per rank.
      check: whether a worker that fails fails the test.
      **arguments: passed on; must be fit for JSON.

    Returns:
      List of the dicts of the workers; with `check=False` list of `(exit code, output, dict or None)`.
    """
    from tfdist.cluster.store import StoreServer

    secret = secrets.token_hex(32)
    with tempfile.TemporaryDirectory() as folder:
        server = StoreServer("127.0.0.1", 0, secret=secret.encode()) if num_workers > 1 else None
        workers = []
        try:
            for rank in range(num_workers):
                variables = _variables(rank, num_workers, server, secret, environment or {})
                workers.append(_start(rank, folder, function, arguments, variables))
            _wait(workers, time.monotonic() + timeout)
            outcomes = [_outcome(rank, folder, worker) for rank, worker in enumerate(workers)]
        finally:
            for worker in workers:
                if worker.poll() is None:
                    os.killpg(worker.pid, signal.SIGKILL)
                    worker.wait()
            if server is not None:
                server.close()
    if not check:
        return outcomes
    if any(code for code, _, _ in outcomes):
        raise WorkersFailed("\n".join(f"--- rank {i} exit {o[0]}\n{o[1][-6000:]}" for i, o in enumerate(outcomes)))
    return [result for _, _, result in outcomes]


def _variables(rank, num_workers, server, secret, environment):
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("TFDIST_", "TF_CONFIG", "SLURM_"))}
    variables.update(PYTHONPATH=str(ROOT), TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    variables["TF_NUM_INTRAOP_THREADS"] = "1"
    if server is not None:
        variables.update(
            TFDIST_RANK=str(rank),
            TFDIST_WORLD_SIZE=str(num_workers),
            TFDIST_LOCAL_RANK=str(rank),
            TFDIST_LOCAL_WORLD_SIZE=str(num_workers),
            TFDIST_STORE=server.address,
            TFDIST_SECRET=secret,
            TFDIST_TIMEOUT="60",
        )
    for name, value in environment.items():
        variables[name] = value[rank] if isinstance(value, list) else value
    return variables


def _start(rank, folder, function, arguments, variables):
    with open(Path(folder) / f"output-{rank}", "wb") as output:
        return subprocess.Popen(
            [
                sys.executable,
                "-X",
                "faulthandler",
                __file__,
                function,
                str(Path(folder) / f"result-{rank}"),
                json.dumps(arguments),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
            cwd=ROOT,
            start_new_session=True,
        )


def _wait(workers, deadline):
    """Waits for all; once one has failed the others get ten more seconds."""
    while any(worker.poll() is None for worker in workers):
        if any(worker.poll() for worker in workers):
            deadline = min(deadline, time.monotonic() + 10)
        if time.monotonic() > deadline:
            for worker in workers:
                if worker.poll() is None:
                    os.killpg(worker.pid, signal.SIGABRT)  # faulthandler prints the stacks
            time.sleep(0.5)
            return
        time.sleep(0.02)


def _outcome(rank, folder, worker):
    output = (Path(folder) / f"output-{rank}").read_text(errors="replace")
    result = Path(folder) / f"result-{rank}.json"
    if worker.poll() is None or not result.exists():
        return worker.poll() or 1, output, None
    values = json.loads(result.read_text())
    with np.load(Path(folder) / f"result-{rank}.npz") as arrays:
        values.update({name: arrays[name] for name in arrays.files})
    return worker.returncode, output, values


def _main(function, path, arguments):
    sys.path.insert(0, str(ROOT))
    module, name = function.split(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(arguments)) or {}
    arrays = {key: value for key, value in result.items() if isinstance(value, np.ndarray)}
    np.savez(path + ".npz", **arrays)
    plain = {key: value for key, value in result.items() if key not in arrays}
    Path(path + ".json").write_text(json.dumps(plain, default=float))


if __name__ == "__main__":
    _main(*sys.argv[1:])
