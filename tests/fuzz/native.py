"""Builds the C++ fuzz targets with the core: with g++ and driver.cc, or with clang++ and libFuzzer."""

import concurrent.futures
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "tfdist" / "native"
SANITIZERS = "address,undefined"
BUILD_SECONDS = 600

# Target -> the folders of the core that it is built with.
TARGETS = {
    "engine": ("common", "transport", "engine", "elastic"),
    "server": ("common", "parameter_server"),
    "client": ("common", "parameter_server"),
}


def clang():
    """Returns the name of a clang++ here, or None."""
    names = ["clang++", *(f"clang++-{version}" for version in range(25, 11, -1))]
    return next((name for name in names if shutil.which(name)), None)


def build(folder, targets=tuple(TARGETS), libfuzzer=None):
    """Builds targets into `folder`; every file of the core is compiled once.

    Args:
      folder: an existing directory.
      targets: keys of TARGETS.
      libfuzzer: the clang++ to build for libFuzzer; None builds with driver.cc, by $CXX or g++.

    Returns:
      A dict, target -> the program's path.
    """
    compiler = libfuzzer or os.environ.get("CXX", "g++")
    flags = [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-O1", "-g", "-std=c++17", "-ffp-contract=off"]
    flags += [
        f"-I{NATIVE}",
        f"-I{HERE}",
        *(["-fsanitize=fuzzer-no-link"] if libfuzzer else ["-Wall", "-Wextra", "-Werror"]),
    ]
    sources = {source for target in targets for source in _sources(target, libfuzzer)}

    def compile_one(source):
        target = Path(folder) / f"{source.parent.name}-{source.stem}.o"
        _run([compiler, *flags, "-c", str(source), "-o", str(target)])
        return source, str(target)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = dict(pool.map(compile_one, sorted(sources)))
    programs = {}
    for name in targets:
        programs[name] = str(Path(folder) / f"{name}_target")
        linked = [objects[source] for source in _sources(name, libfuzzer)]
        last = ["-fsanitize=fuzzer"] if libfuzzer else []
        _run([compiler, f"-fsanitize={SANITIZERS}", *last, *linked, "-o", programs[name], "-pthread"])
    return programs


def corpus(target):
    """Returns the paths of inputs that broke `target` once."""
    return sorted(str(path) for path in (HERE / "corpus" / target).glob("*"))


def _sources(target, libfuzzer):
    own = [HERE / f"{target}_target.cc", *([] if libfuzzer else [HERE / "driver.cc"])]
    return own + [source for folder in TARGETS[target] for source in sorted((NATIVE / folder).glob("*.cc"))]


def _run(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
