"""Builds the core with its C++ tests under sanitizers and runs them: sanitize.py address,undefined | thread | none.

There are no suppressions: nothing in the core is expected to be reported.
"""

import concurrent.futures
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tfdist" / "native"
_COMPILER = os.environ.get("CXX", "g++")

# Test program -> the folders of the core it is built with, and how far it is optimised (reductions: vectorised).
PROGRAMS = {
    "engine_test": (("common", "transport", "engine", "elastic"), "-O1"),
    "elastic_test": (("common", "transport", "engine", "elastic"), "-O1"),
    "stream_test": (("common", "transport", "engine", "elastic"), "-O1"),
    "reduce_test": (("common",), "-O3"),
    "parameter_server_test": (("common", "parameter_server"), "-O1"),
}


_OBJECTS = tempfile.TemporaryDirectory()  # what several programs are built with is compiled once


def build_and_run(sanitizers, program="engine_test", environments=({},), timeout=300):
    """Returns the finished processes of `program` under `sanitizers` ("none" for a plain build).

    There is one process for each of the `environments`, whose variables are added to this process's.
    """
    folders, optimisation = PROGRAMS[program]
    sources = [Path(__file__).with_name(f"{program}.cc")]
    for folder in folders:
        sources += sorted((NATIVE / folder).glob("*.cc"))
    flags = [] if sanitizers == "none" else [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    flags += [
        "-std=c++17",
        optimisation,
        "-ffp-contract=off",
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{NATIVE}",
        "-pthread",
    ]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(lambda source: _compile(source, flags, timeout), sources))
    target = Path(_OBJECTS.name, program)
    subprocess.run([_COMPILER, *flags, *objects, "-o", str(target)], check=True, timeout=timeout)
    return [
        subprocess.run([str(target)], env={**os.environ, **extra}, capture_output=True, text=True, timeout=timeout)
        for extra in environments
    ]


def _compile(source, flags, timeout):
    named = "-".join(
        [*source.relative_to(ROOT).with_suffix("").parts, *(f for f in flags if f.startswith(("-O", "-fsan")))]
    )
    target = Path(_OBJECTS.name, f"{named}.o")
    if not target.exists():
        subprocess.run([_COMPILER, *flags, "-c", str(source), "-o", str(target)], check=True, timeout=timeout)
    return str(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    results = [result for program in PROGRAMS for result in build_and_run(sys.argv[1], program)]
    for result in results:
        print(result.stdout + result.stderr, end="")
    failed = any(result.returncode for result in results)
    print(f"{sys.argv[1]}: {'FAILED' if failed else 'passed'}")
    sys.exit(failed)
