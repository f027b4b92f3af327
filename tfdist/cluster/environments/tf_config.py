"""TF_CONFIG, as MultiWorkerMirroredStrategy, Vertex AI, SageMaker and Kubeflow use it.

    {"cluster": {"chief": ["a:2222"], "worker": ["b:2222", "c:2222"]}, "task": {"type": "worker", "index": 0}}

The chief is rank 0 and the workers follow in order; without a chief worker 0 is rank 0. Rank 0 serves the store at its own
address. Tasks of type "ps" and "evaluator" take no part in a ring: they are told so rather than left waiting.
"""

import json

from tfdist.cluster.address import format_address, parse_address
from tfdist.cluster.cluster import Cluster
from tfdist.cluster.host import LOOPBACK, is_loopback, own_address
from tfdist.cluster.secret import find_secret
from tfdist.errors import ConfigurationError

_CHIEF_TYPES = ("chief", "master")
_WORKER_TYPES = (*_CHIEF_TYPES, "worker")
_OTHER_TYPES = ("ps", "evaluator")


def from_tf_config(environ):
    """Returns the Cluster, or None where TF_CONFIG describes none."""
    if not environ.get("TF_CONFIG", ""):
        return None
    addresses, ranks, task = _parse(environ["TF_CONFIG"])
    if addresses is None:
        return None
    if task[0] in _OTHER_TYPES:
        raise ConfigurationError(
            f"TF_CONFIG is expected to give this process one of the tasks {_WORKER_TYPES}. Received: "
            f'task={{"type": {task[0]!r}, "index": {task[1]}}}, which takes no part in this strategy. '
            "Do not start that task, or unset TF_CONFIG in it to run it by itself."
        )
    if task not in ranks:
        known = ", ".join(f"{kind}:{index}" for kind, index in ranks)
        raise ConfigurationError(
            "TF_CONFIG is expected to give this process a task of its cluster. "
            f"Received: task={task[0]}:{task[1]}, cluster={known}. Correct the task's type or index."
        )
    return _place(environ, addresses, ranks[task])


def _place(environ, addresses, rank):
    hosts = [parse_address(address, "TF_CONFIG")[0] for address in addresses]
    hosts = [LOOPBACK if is_loopback(host) else host for host in hosts]
    one_host = len(set(hosts)) == 1
    if not one_host and LOOPBACK in hosts:
        raise ConfigurationError(
            "TF_CONFIG is expected to name hosts that reach each other. "
            f"Received: {addresses}, loopback and another host together. Write each host's own address."
        )
    place = {"rank": rank, "world_size": len(hosts), "local_rank": hosts[:rank].count(hosts[rank]),
             "local_world_size": hosts.count(hosts[rank]), "source": "TF_CONFIG"}  # fmt: skip
    if len(hosts) == 1:
        return Cluster(**place)
    own_host, store_address = parse_address(addresses[rank])[0], addresses[0]
    if not one_host:
        own_host = own_address(environ, name=own_host, towards=hosts[0 if rank else 1])
    if rank == 0:
        store_address = format_address(own_host, parse_address(addresses[0])[1])
    return Cluster(
        **place,
        store_address=store_address,
        serves_store=rank == 0,
        bind_host=own_host,
        secret=find_secret(environ, one_host=one_host, source="TF_CONFIG"),
    )


def _parse(text):
    """Returns the workers' addresses by rank, {(type, index): rank} and this process's (type, index)."""
    try:
        config = json.loads(text)
        cluster = config.get("cluster") or {}
        if not cluster:
            return None, None, None
        lists = {kind: _addresses(cluster.get(kind)) for kind in _WORKER_TYPES}
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
    tasks = [(kind, index) for kind in _WORKER_TYPES for index in range(len(lists[kind]))]
    addresses = [address for kind in _WORKER_TYPES for address in lists[kind]]
    if len(set(addresses)) < len(addresses):
        raise ConfigurationError(
            f"TF_CONFIG is expected to give every task an address of its own. Received: {addresses}. "
            "Choose different ports."
        )
    return addresses, {task_: rank for rank, task_ in enumerate(tasks)}, task


def _addresses(value):
    if isinstance(value, dict):  # {"0": "host:port"}, a form that tf.train.ClusterSpec takes too
        value = [value[key] for key in sorted(value, key=int)]
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(address, str) for address in value):
        raise TypeError("a list of addresses was expected")
    return value
