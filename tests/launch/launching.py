"""Starts `tfdist ...` as a process of its own."""

import contextlib
import os
import pathlib
import subprocess
import sys

ROOT = str(pathlib.Path(__file__).resolve().parents[2])


def _environment(**variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TFDIST_", "OMP_", "TF_"))}
    return {**kept, "PYTHONPATH": os.pathsep.join([ROOT, *filter(None, sys.path)]), **variables}


def _command(*arguments):
    return [sys.executable, "-m", "tfdist", *map(str, arguments)]


def tfdist(*arguments, cwd=None, **variables):
    """Runs `tfdist ...` to its end."""
    return subprocess.run(
        _command(*arguments), env=_environment(**variables), cwd=cwd, capture_output=True, text=True, timeout=60
    )


@contextlib.contextmanager
def running(*arguments, lines=0, **variables):
    """Starts `tfdist ...`, waits for so many lines on its stdout and yields the process; its session dies with it."""
    process = subprocess.Popen(
        _command(*arguments),
        env=_environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        process.first_lines = [process.stdout.readline() for _ in range(lines)]
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)
