"""TF_CONFIG, as MultiWorkerMirroredStrategy, Vertex AI, SageMaker and Kubeflow use it.

    {"cluster": {"chief": ["a:2222"], "worker": ["b:2222", "c:2222"]}, "task": {"type": "worker", "index": 0}}

The chief is rank 0 and the workers follow in order; without a chief worker 0 is rank 0. Rank 0 serves the store at its own
address. A task of type "ps" is a parameter server, which runs a program of its own, and "evaluator" takes no part: where they run
the training script they are told so rather than left waiting.
"""

import dataclasses
import json

from tfdist.cluster.address import format_address, parse_address
from tfdist.cluster.cluster import Cluster
from tfdist.cluster.host import LOOPBACK, is_loopback, own_address
from tfdist.cluster.secret import find_secret
from tfdist.cluster.server import ServerPlace
from tfdist.errors import ConfigurationError

_CHIEF_TYPES = ("chief", "master")
_WORKER_TYPES = (*_CHIEF_TYPES, "worker")
_SERVER_TYPE = "ps"
_REFUSED = {
    "ps": "a parameter server. Start `python -m tfdist.parameter_server` in that task instead of the training script.",
    "evaluator": "which takes no part in training. Do not start that task, or unset TF_CONFIG in it to run it by itself.",
}


@dataclasses.dataclass(frozen=True)
class _Described:
    """What TF_CONFIG says: lists of addresses by rank and by server, ranks by (type, index), this process's task."""

    workers: list
    ranks: dict
    servers: list
    task: tuple

    def hosts(self):
        """Returns the hosts of all workers, then of all servers, loopback by one name."""
        hosts = [parse_address(address, "TF_CONFIG")[0] for address in (*self.workers, *self.servers)]
        hosts = [LOOPBACK if is_loopback(host) else host for host in hosts]
        if len(set(hosts)) > 1 and LOOPBACK in hosts:
            raise ConfigurationError(
                "TF_CONFIG is expected to name hosts that reach each other. Received: "
                f"{[*self.workers, *self.servers]}, loopback and another host together. Write each host's own address."
            )
        return hosts


def from_tf_config(environ):
    """Returns the Cluster, or None where TF_CONFIG describes none."""
    described = _parse(environ.get("TF_CONFIG", ""))
    if described is None:
        return None
    task, ranks = described.task, described.ranks
    if task[0] in _REFUSED:
        raise ConfigurationError(
            f"TF_CONFIG is expected to give this process one of the tasks {_WORKER_TYPES}. Received: "
            f'task={{"type": {task[0]!r}, "index": {task[1]}}}, {_REFUSED[task[0]]}'
        )
    if task not in ranks:
        raise _unknown_task(task, ranks)
    return _place(environ, described, ranks[task])


def server_from_tf_config(environ):
    """Returns the ServerPlace, or None where TF_CONFIG describes no cluster."""
    described = _parse(environ.get("TF_CONFIG", ""))
    if described is None:
        return None
    kind, index = described.task
    tasks = [(_SERVER_TYPE, number) for number in range(len(described.servers))]
    if kind != _SERVER_TYPE:
        raise ConfigurationError(
            f"TF_CONFIG is expected to give a parameter server a task of type {_SERVER_TYPE!r}. "
            f"Received: task={kind}:{index}. Run the training script in that task."
        )
    if described.task not in tasks:
        raise _unknown_task(described.task, tasks)
    if not described.workers:
        raise ConfigurationError(
            f"TF_CONFIG is expected to name workers beside the servers. Received: ps={described.servers}. Add them."
        )
    hosts = described.hosts()
    host, port = parse_address(described.servers[index], "TF_CONFIG")
    one_host = len(set(hosts)) == 1
    return ServerPlace(
        index=index,
        num_servers=len(described.servers),
        world_size=len(described.workers),
        store_address=described.workers[0],
        bind_host=host if one_host else own_address(environ, name=host, towards=hosts[0]),
        secret=find_secret(environ, one_host=one_host, source="TF_CONFIG"),
        port=port,
        source="TF_CONFIG",
    )


def _place(environ, described, rank):
    hosts, world_size = described.hosts(), len(described.workers)
    of_workers = hosts[:world_size]
    one_host = len(set(hosts)) == 1
    place = {"rank": rank, "world_size": world_size, "local_rank": of_workers[:rank].count(hosts[rank]),
             "local_world_size": of_workers.count(hosts[rank]), "num_servers": len(described.servers),
             "source": "TF_CONFIG"}  # fmt: skip
    if len(hosts) == 1:
        return Cluster(**place)
    own_host, store_address = parse_address(described.workers[rank])[0], described.workers[0]
    if not one_host:
        own_host = own_address(environ, name=own_host, towards=next(host for host in hosts if host != hosts[rank]))
    if rank == 0:
        store_address = format_address(own_host, parse_address(store_address)[1])
    return Cluster(
        **place,
        store_address=store_address,
        serves_store=rank == 0,
        bind_host=own_host,
        secret=find_secret(environ, one_host=one_host, source="TF_CONFIG"),
    )


def _unknown_task(task, tasks):
    known = ", ".join(f"{kind}:{index}" for kind, index in tasks)
    return ConfigurationError(
        "TF_CONFIG is expected to give this process a task of its cluster. "
        f"Received: task={task[0]}:{task[1]}, cluster={known}. Correct the task's type or index."
    )


def _parse(text):
    """Returns a `_Described`, or None where the text describes no cluster."""
    try:
        config = json.loads(text or "{}")
        cluster = config.get("cluster") or {}
        if not cluster:
            return None
        lists = {kind: _addresses(cluster.get(kind)) for kind in (*_WORKER_TYPES, _SERVER_TYPE)}
        task = (config["task"]["type"], int(config["task"]["index"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(
            'TF_CONFIG is expected to be JSON like {"cluster": {"worker": ["host:port", ...]}, '
            f'"task": {{"type": "worker", "index": 0}}}}. Received: TF_CONFIG={text[:200]!r} '
            f"({type(error).__name__}: {error}). Correct it, or unset it."
        ) from error
    if sum(len(lists[kind]) for kind in _CHIEF_TYPES) > 1:
        raise ConfigurationError(
            "TF_CONFIG is expected to have at most one chief. "
            f"Received: chief={lists['chief']}, master={lists['master']}. Make the others workers."
        )
    workers = [address for kind in _WORKER_TYPES for address in lists[kind]]
    addresses = [*workers, *lists[_SERVER_TYPE]]
    if len(set(addresses)) < len(addresses):
        raise ConfigurationError(
            f"TF_CONFIG is expected to give every task an address of its own. Received: {addresses}. "
            "Choose different ports."
        )
    tasks = [(kind, index) for kind in _WORKER_TYPES for index in range(len(lists[kind]))]
    return _Described(workers, {task_: rank for rank, task_ in enumerate(tasks)}, lists[_SERVER_TYPE], task)


def _addresses(value):
    if isinstance(value, dict):  # {"0": "host:port"}, a form that tf.train.ClusterSpec takes too
        value = [value[key] for key in sorted(value, key=int)]
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(address, str) for address in value):
        raise TypeError("a list of addresses was expected")
    return value
