"""Compiles limits.cc on demand into the user's cache folder."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

from tfdist.errors import ConfigurationError

_SOURCE = Path(__file__).with_name("limits.cc")
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread")
_COMPILE_SECONDS = 120


def build(environ=os.environ):
    """Returns the path of the compiled library; the file's name holds a digest of source, compiler and machine.

    Raises:
      ConfigurationError: there is no compiler, or it fails.
    """
    compiler = shlex.split(environ.get("CXX", "") or "g++")
    if shutil.which(compiler[0]) is None:
        raise ConfigurationError(
            "a C++17 compiler is expected for the limits of this machine. "
            f"Received: CXX={compiler[0]}, which is not on the PATH. Install g++, or leave the limits out."
        )
    # Built where it runs, so the machine's own instructions may be used; the processor is part of the file's name.
    native = ("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ()
    command = [*compiler, *_FLAGS, *native]
    key = [_SOURCE.read_text(), *command, _processor()]
    target = _cache(environ) / f"limits-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        run = subprocess.run(
            [*command, str(_SOURCE), "-o", str(partial)],
            capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False,
        )  # fmt: skip
        if run.returncode:
            first = next((line for line in run.stderr.splitlines() if "error" in line), "no message")
            raise ConfigurationError(f"limits.cc is expected to compile. Received: {first}. Command: {run.args}")
        os.replace(partial, target)
    return target


def _cache(environ):
    base = environ.get("XDG_CACHE_HOME", "") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "tfdist"


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        return platform.processor()
