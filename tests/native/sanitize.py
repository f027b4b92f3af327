"""Builds the engine with its C++ test under sanitizers and runs it: sanitize.py address,undefined | thread | none.

There are no suppressions: nothing in the core is expected to be reported.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tfdist" / "native"


def build_and_run(sanitizers, timeout=300):
    """Returns the finished process of engine_test under `sanitizers` ("none" for a plain build)."""
    sources = [Path(__file__).with_name("engine_test.cc")]
    for folder in ("common", "transport", "engine"):
        sources += sorted((NATIVE / folder).glob("*.cc"))
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "engine_test"
        flags = [] if sanitizers == "none" else [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
        compiler = os.environ.get("CXX", "g++")
        command = [compiler, "-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", *flags]
        subprocess.run([*command, *map(str, sources), "-o", str(program), "-pthread"], check=True, timeout=timeout)
        return subprocess.run([str(program)], capture_output=True, text=True, timeout=timeout)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    result = build_and_run(sys.argv[1])
    print(result.stdout + result.stderr, end="")
    print(f"{sys.argv[1]}: {'passed' if result.returncode == 0 else 'FAILED'}")
    sys.exit(result.returncode)
