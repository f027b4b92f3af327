"""The table of what `tfdist bench fit` compares: how the processes of each variant are started."""

import contextlib
import dataclasses
import functools
import json
import socket
import sys

from tfdist.bench import peers
from tfdist.bench.crew import Launch
from tfdist.launch.resources import available_cores, thread_variables

_OWN_PROGRAM = peers.PROGRAMS / "fit_tfdist.py"
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}
KERAS_3 = {"TF_USE_LEGACY_KERAS": "0", "KERAS_BACKEND": "tensorflow"}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
      name: shown.
      crew: function `(setting, model)` to a context manager of a `Crew`.
      num_batches: int, how many times the batch per worker a call of `model.fit` is told to take at a step.
      num_models: int, unrelated models that train at the same time, so that the samples of all count.
      num_updates: int, how many steps of `model.fit` its workers make in the time of a step: each its own, where none waits
        for another.
      communicates: bool, whether its workers train one model together.
    """

    name: str
    crew: object
    num_batches: int
    num_models: int = 1
    num_updates: int = 1
    communicates: bool = False


COMPUTE = "unrelated workers"
STRATEGIES = ("ring", "async", "sync")


def table(num_workers, strategies=("ring",)):
    """Returns the variants that need nothing but tfdist: those of its strategies, one process, several unrelated ones."""
    unrelated = functools.partial(_plain, num_processes=num_workers)
    one_core = functools.partial(_plain, cores=[available_cores()[:1]])
    all_cores = functools.partial(_plain, cores=[available_cores()])
    rows = [
        *(own(num_workers, strategy) for strategy in strategies),
        Variant(COMPUTE, unrelated, 1, num_models=num_workers),
        Variant("one process, one core", one_core, 1),
        Variant("one process, all cores", all_cores, 1),
    ]
    if num_workers > 1:
        rows.append(Variant(f"one process, all cores, batch x {num_workers}", all_cores, num_workers))
    return rows


def own(num_workers, strategy):
    """Returns the variant of one of `STRATEGIES`; those with a parameter server have one."""
    name = "tfdist" if strategy == "ring" else f"tfdist {strategy}"
    crew = functools.partial(_distributed, strategy=strategy, num_servers=int(strategy != "ring"))
    return _variant(name, crew, num_workers, is_asynchronous=strategy == "async")


def of_tensorflow(num_workers, strategies):
    """Returns the variants of TensorFlow's own strategies that are the counterparts of `strategies`."""
    rows = []
    if "ring" in strategies:
        rows.append(_variant("MultiWorkerMirrored", _mirrored, num_workers))
    if {"async", "sync"} & set(strategies):
        rows.append(_variant("TF ParameterServer", _parameter_server, num_workers, is_asynchronous=True))
    return rows


def _variant(name, crew, num_workers, is_asynchronous=False):
    if is_asynchronous:
        return Variant(name, crew, 1, num_updates=num_workers, communicates=True)
    return Variant(name, crew, num_workers, communicates=True)


def missing(peer_python, versions):
    """Returns one line that says what TensorFlow's own strategies lack, or None."""
    if "tf-keras" in versions:
        return None
    return (
        "TensorFlow's own strategies are left out: they need legacy Keras. "
        f"Run `{peer_python} -m pip install --no-deps tf-keras` (in TensorFlow's own version)."
    )


def _distributed(setting, model, strategy, num_servers):
    variables = {**QUIET, **KERAS_3}
    return peers.tfdist_crew(setting, _OWN_PROGRAM, variables, num_servers=num_servers, model=model, strategy=strategy)


@contextlib.contextmanager
def _plain(setting, model, num_processes=1, cores=None):
    """Processes without a strategy, by default on the cores and with the threads of a worker of tfdist."""
    setting = dataclasses.replace(setting, world_size=num_processes)
    threads = {} if cores is None else thread_variables(len(cores[0]), 1)
    launches = [
        Launch(
            (sys.executable, str(_OWN_PROGRAM)),
            setting.environment(rank, PYTHONPATH=peers.own_path(), **QUIET, **KERAS_3, **threads),
        )
        for rank in range(num_processes)
    ]
    task = {"model": model, "strategy": None}
    with peers.open_crew(
        "plain Keras", setting, launches, **task, **({} if cores is None else {"cores": cores})
    ) as crew:
        yield crew


@contextlib.contextmanager
def _mirrored(setting, model):
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(setting.world_size)]
    launches = [
        _of_tensorflow(setting, "fit_mirrored.py", {"worker": addresses}, "worker", rank)
        for rank in range(setting.world_size)
    ]
    with peers.open_crew("MultiWorkerMirrored", setting, launches, model=model) as crew:
        yield crew


@contextlib.contextmanager
def _parameter_server(setting, model):
    """Workers with a core each; the server and the coordinator, the only one that reports, are pinned to none."""
    chief, server, *workers = (f"127.0.0.1:{port}" for port in _free_ports(setting.world_size + 2))
    cluster = {"chief": [chief], "ps": [server], "worker": workers}
    launches = [
        _of_tensorflow(setting, "fit_parameter_server.py", cluster, kind, index, is_server=kind != "chief")
        for kind, addresses in cluster.items()
        for index in range(len(addresses))
    ]
    alone = dataclasses.replace(setting, world_size=1)
    with peers.open_crew("TF ParameterServer", alone, launches, model=model, cores=setting.cores) as crew:
        yield crew


def _of_tensorflow(setting, program, cluster, kind, index, is_server=False):
    place = json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})
    environment = setting.environment(index, **QUIET, TF_USE_LEGACY_KERAS="1", TF_CONFIG=place)
    return Launch((setting.peer_python, str(peers.PROGRAMS / program)), environment, is_server)


def _free_ports(count):
    """Returns ports that were free a moment ago: TF_CONFIG cannot say "any"."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
