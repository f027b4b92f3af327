"""`tfdist doctor`: what is installed, what the cluster looks like from here, and what is wrong."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys

import tfdist
from tfdist.cluster import resolve
from tfdist.errors import TfdistError
from tfdist.launch.parser import Parser
from tfdist.launch.resources import available_cores, core_quota, num_gpus

_TENSORFLOW_SECONDS = 120
_TENSORFLOW_PACKAGES = ("tensorflow", "tensorflow-cpu", "tf-nightly", "tf-nightly-cpu")
_OLDEST_TENSORFLOW = (2, 16)
# In a process of its own: it takes seconds, and a broken installation may crash.
_TRY_TENSORFLOW = """
import json, os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
found = {"gpus": len(tf.config.list_physical_devices("GPU"))}
try:
    from tfdist.comm import library, tensorflow_library
    tensorflow_library.operations()
    found["operations"] = str(library.path("tensorflow"))
except Exception as error:
    found["error"] = str(error)
print("found:" + json.dumps(found))
"""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
      name: what was looked at.
      value: what was found.
      problem: what is wrong with it and what to do, or None.
    """

    name: str
    value: str
    problem: str | None = None


def main(arguments):
    """Runs the subcommand; returns 0, or 1 where something is wrong."""
    parser = Parser(
        prog="tfdist doctor",
        usage="tfdist doctor [--json]",
        description="Shows what is installed, the cluster as seen from here, and what is wrong. Exit code 1: something is.",
    )
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object")
    as_json = parser.parse_args(arguments).json
    findings = examine()
    sound = all(finding.problem is None for finding in findings)
    if as_json:
        text = json.dumps({"ok": sound, "findings": [dataclasses.asdict(finding) for finding in findings]}, indent=2)
    else:
        text = render(findings)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    return 0 if sound else 1


def examine(environ=os.environ):
    """Returns the list of `Finding`s."""
    findings = [
        Finding("tfdist", f"{tfdist.__version__} in {os.path.dirname(tfdist.__file__)}"),
        Finding("python", f"{platform.python_version()}, {sys.executable}"),
        Finding("system", f"{platform.system()} {platform.machine()}", _problem_of_system()),
        _tensorflow(),
        _keras(environ),
        Finding("numpy", _version("numpy") or "not installed", None if _version("numpy") else _install("numpy")),
        _native_core(),
    ]
    if any(map(_version, _TENSORFLOW_PACKAGES)):
        findings += _tensorflow_at_work(environ)
    return [*findings, _cores(), _cluster(environ)]


def render(findings):
    """Returns the report for a person: a table, then what is wrong."""
    width = max(len(finding.name) for finding in findings)
    lines = [f"{'!' if finding.problem else ' '} {finding.name:{width}}  {finding.value}" for finding in findings]
    problems = [f"{finding.name}: {finding.problem}" for finding in findings if finding.problem]
    return "\n".join([*lines, "", *(problems or ["Nothing is wrong."])])


def _problem_of_system():
    if platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64"):
        return None
    if platform.system() == "Darwin":
        return None
    return "tfdist is tried on Linux (x86-64, aarch64) and macOS only. Use one of them, or a container."


def _tensorflow():
    versions = {name: _version(name) for name in _TENSORFLOW_PACKAGES}
    present = {name: version for name, version in versions.items() if version}
    value = ", ".join(f"{name} {version}" for name, version in present.items()) or "not installed"
    problem = None
    if not present:
        problem = "it is needed. Run `pip install tensorflow-cpu`, or `pip install tensorflow[and-cuda]` for GPUs."
    elif len(present) > 1:
        problem = (
            "these packages fill the same directory, and the later one damaged the other. "
            f"Run `pip uninstall {' '.join(present)}`, then install one."
        )
    elif _numbers(next(iter(present.values()))) < _OLDEST_TENSORFLOW:
        problem = "version 2.16 or newer is needed. Run `pip install --upgrade " + next(iter(present)) + "`."
    return Finding("tensorflow", value, problem)


def _keras(environ):
    version = _version("keras")
    backend = environ.get("KERAS_BACKEND", "") or "tensorflow"
    if version is None:
        return Finding("keras", "not installed", _install("keras"))
    problem = None
    if _numbers(version) < (3,):
        problem = "version 3 or newer is needed. Run `pip install --upgrade keras`."
    elif backend != "tensorflow":
        problem = f"KERAS_BACKEND={backend!r}; tfdist works with TensorFlow's. Unset it, or set it to tensorflow."
    elif environ.get("TF_USE_LEGACY_KERAS", "0").lower() in ("1", "true"):
        problem = "TF_USE_LEGACY_KERAS selects Keras 2; tfdist works with Keras 3. Unset it."
    return Finding("keras", f"{version}, backend {backend}", problem)


def _native_core():
    try:
        from tfdist.comm import library, shared_memory
    except ImportError as error:
        return Finding("native core", "cannot be looked for", f"{error}. Install what is missing.")
    path = str(library.path("core"))
    try:
        core = library.core()
    except TfdistError as error:
        return Finding("native core", f"{path}, does not load", str(error))
    adds, copies = core.tfdist_measure_reduce_seconds_per_byte(), core.tfdist_measure_copy_seconds_per_byte()
    speed = f"adds {1e-9 / adds:.3g} and copies {1e-9 / copies:.3g} GB/s with {core.tfdist_instruction_set().decode()}"
    descriptor, _ = shared_memory.create(0, 1)
    shared_memory.close_all([descriptor])
    return Finding("native core", f"{path}, loads; {speed}; shared memory: {'yes' if descriptor >= 0 else 'no, TCP'}")


def _tensorflow_at_work(environ):
    """What only TensorFlow itself can say."""
    try:
        run = subprocess.run(
            [sys.executable, "-c", _TRY_TENSORFLOW],
            env={**environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True, text=True, timeout=_TENSORFLOW_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [Finding("operations", "unknown", f"importing TensorFlow took over {_TENSORFLOW_SECONDS} s. Try it.")]
    lines = [line for line in run.stdout.splitlines() if line.startswith("found:")]
    if not lines:
        last = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        return [Finding("operations", "unknown", f"TensorFlow cannot be imported: {last}. Install it again.")]
    found = json.loads(lines[-1][len("found:") :])
    driver, seen = num_gpus(), found["gpus"]
    no_gpu = driver and not seen and environ.get("CUDA_VISIBLE_DEVICES") is None
    return [
        Finding("operations", f"{found['operations']}, load" if "operations" in found else "do not load",
                found.get("error")),
        Finding("gpus", f"{seen} for TensorFlow, {driver} for the driver",
                "TensorFlow sees none of the driver's. Run `pip install tensorflow[and-cuda]`." if no_gpu else None),
    ]  # fmt: skip


def _cores():
    cores, quota = available_cores(), core_quota()
    limit = "" if quota is None else f", limited to the time of {quota:g}"
    return Finding("cores", f"{len(cores)} of {os.cpu_count()}{limit}")


def _cluster(environ):
    try:
        # A rank that looks by itself need not wait long for rank 0.
        cluster = resolve({"TFDIST_TIMEOUT": "5", **environ})
    except TfdistError as error:
        return Finding("cluster", "unknown", str(error))
    if cluster.world_size == 1 and not cluster.num_servers:
        return Finding("cluster", f"{cluster.source}: rank 0 of 1")
    serves = "served here" if cluster.serves_store else "served elsewhere"
    return Finding(
        "cluster",
        f"{cluster.source}: rank {cluster.rank} of {cluster.world_size}, "
        f"local rank {cluster.local_rank} of {cluster.local_world_size}, store {cluster.store_address} ({serves}), "
        f"listens on {cluster.bind_host}" + (f", servers: {cluster.num_servers}" if cluster.num_servers else ""),
    )


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _install(name):
    return f"it is needed. Run `pip install {name}`."


def _numbers(version):
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
