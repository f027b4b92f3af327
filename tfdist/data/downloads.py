"""Data sets fetched once: a cache with a checksum that several processes share, and sources tried one after the other."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

import numpy as np
from absl import logging

from tfdist.errors import TfdistError

SOURCE_TIMEOUT = 120.0  # seconds for one source as a whole
_LOCK_TIMEOUT = 600.0  # seconds; somebody else is downloading


def load(kind, sources, check):
    """Returns a data set from the cache, or from the first source that works.

    It lands in `$XDG_CACHE_HOME/tfdist` (default `~/.cache/tfdist`) with its SHA-256 beside it. Several processes may
    call at once: one downloads, the others wait.

    Args:
      kind: str, what it is, plural; the cached file's name.
      sources: sequence of `(name, source)`; `source(scratch)` returns a sequence of arrays, or raises, and may leave
        files in the folder `scratch`.
      check: function of these arrays that returns them as a dict, or raises ValueError.

    Returns:
      A dict of arrays; `"name"` is that of the source.

    Raises:
      TfdistError: no source could be reached; the text has the reason of each.
    """
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "tfdist"
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / f"{kind}.lock"):
        return _read_cache(folder / f"{kind}.npz") or _fetch(folder, kind, sources, check)


def run(scratch, *command):
    """Runs a downloading tool in the folder `scratch`.

    Raises:
      OSError, subprocess.SubprocessError: it is not installed, failed, or took more than 120 s.
    """
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"{command[0]} is not installed")
    subprocess.run(
        command, cwd=scratch, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=SOURCE_TIMEOUT
    )


def download_wheel(scratch, requirement):
    """Returns the path of a Python package's wheel, fetched into the folder `scratch`; nothing is installed or run."""
    run(scratch, sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", requirement)
    return next(scratch.glob("*.whl"))


@contextlib.contextmanager
def lock(path, timeout=_LOCK_TIMEOUT):
    """Holds the lock file `path`; raises TfdistError when somebody else does for `timeout` seconds."""
    # Dropped by the kernel when its holder dies, so a killed download blocks nobody.
    with open(path, "w") as file:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise TfdistError(
                        f"Expected the process that fetches {path.stem} to finish. Received: {path} locked for {timeout:g} s. "
                        "End that process and try again."
                    ) from None
                time.sleep(0.1)
        yield


def _read_cache(path):
    checksum = path.with_suffix(".sha256")
    if not path.exists() or not checksum.exists():
        return None
    if hashlib.sha256(path.read_bytes()).hexdigest() != checksum.read_text().strip():
        logging.warning("The cached data in %s are damaged and fetched again.", path)
        return None
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def write_cache(path, arrays):
    """Puts a dict of arrays where `load` finds it."""
    partial = path.with_name(f"{path.stem}.partial.npz")
    np.savez_compressed(partial, **arrays)
    checksum = path.with_suffix(".sha256")
    # A crash between the two renames leaves a pair that does not match: it reads as damaged, never as good.
    _write_atomically(checksum, hashlib.sha256(partial.read_bytes()).hexdigest())
    os.replace(partial, path)


def _write_atomically(path, text):
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def _fetch(folder, kind, sources, check):
    for stale in folder.glob(f"{kind}.download.*"):  # of a killed process: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    reasons = []
    for name, source in sources:
        logging.info("Trying to fetch %s ...", name)
        with tempfile.TemporaryDirectory(prefix=f"{kind}.download.", dir=folder) as scratch:
            try:
                arrays = check(*source(pathlib.Path(scratch)))
            except (
                OSError,
                ValueError,
                KeyError,
                StopIteration,
                subprocess.SubprocessError,
                tarfile.TarError,
                zipfile.BadZipFile,
            ) as error:
                reasons.append(f"{name}: {_reason(error)}")
                logging.info("Not available: %s", reasons[-1])
                continue
        arrays["name"] = np.array(name)
        write_cache(folder / f"{kind}.npz", arrays)
        return arrays
    raise TfdistError(
        f"Expected one of the sources of {kind} to be reachable. Received: "
        + "; ".join(reasons)
        + f". Connect this machine to one "
        f"of them, or copy {kind}.npz and {kind}.sha256 from another machine's cache into {folder}."
    )


def _reason(error):
    output = getattr(error, "stderr", None)
    lines = output.decode(errors="replace").strip().splitlines() if output else []
    return lines[-1] if lines else f"{type(error).__name__}: {error}"
