"""One table: the variables of each launcher, and the place they mean."""

import json

import pytest

from tfdist.cluster import Cluster, resolve
from tfdist.cluster.environments.slurm import expand_node_list
from tfdist.errors import ConfigurationError

SECRET = {"TFDIST_SECRET": "of this test"}


def tfdist_run(rank=1, size=2, local_rank=1, local_size=2, store="127.0.0.1:4000"):
    return {"TFDIST_RANK": str(rank), "TFDIST_WORLD_SIZE": str(size), "TFDIST_LOCAL_RANK": str(local_rank),
            "TFDIST_LOCAL_WORLD_SIZE": str(local_size), "TFDIST_STORE": store}  # fmt: skip


def tf_config(cluster, kind="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def torchrun(rank=1, size=2, host="localhost", port=5000, **others):
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": host, "MASTER_PORT": str(port), **others}


def slurm(rank=3, size=5, node=1, local=0, nodes="10.0.0.[1-2]", tasks="3,2", **others):
    return {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": str(size), "SLURM_NTASKS": "99",
            "SLURM_NODEID": str(node), "SLURM_LOCALID": str(local), "SLURM_STEP_NODELIST": nodes,
            "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2", **others}  # fmt: skip


def open_mpi(rank=1, size=4, local_rank=1, local_size=2, **others):
    return {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(size),
            "OMPI_COMM_WORLD_LOCAL_RANK": str(local_rank), "OMPI_COMM_WORLD_LOCAL_SIZE": str(local_size),
            **others}  # fmt: skip


CHIEF = {"chief": ["10.0.0.1:2000"], "worker": ["10.0.0.2:2000", "10.0.0.2:2001", "10.0.0.3:2000"]}
LOCAL = {"worker": ["localhost:2000", "127.0.0.1:2001"]}
BOUND = {"TFDIST_ADDRESS": "10.0.0.9"}

ROWS = {
    "nothing": ({}, (0, 1, 0, 1), None, False, "127.0.0.1", "one worker"),
    "empty variables": (
        {"TFDIST_RANK": "", "TF_CONFIG": "", "RANK": ""},
        (0, 1, 0, 1), None, False, "127.0.0.1", "one worker",
    ),
    "tfdist run": (tfdist_run(), (1, 2, 1, 2), "127.0.0.1:4000", False, "127.0.0.1", "tfdist run"),
    "tfdist run, one worker": (tfdist_run(0, 1, 0, 1), (0, 1, 0, 1), None, False, "127.0.0.1", "tfdist run"),
    "tfdist run, two nodes": (
        {**tfdist_run(3, 4, 1, 2, "10.0.0.1:4000"), **BOUND},
        (3, 4, 1, 2), "10.0.0.1:4000", False, "10.0.0.9", "tfdist run",
    ),
    "tfdist run with servers": (
        {**tfdist_run(), "TFDIST_NUM_SERVERS": "3"}, (1, 2, 1, 2), "127.0.0.1:4000", False, "127.0.0.1", "tfdist run",
    ),
    "tfdist run, one worker with servers": (
        {**tfdist_run(0, 1, 0, 1), "TFDIST_NUM_SERVERS": "2"},
        (0, 1, 0, 1), "127.0.0.1:4000", False, "127.0.0.1", "tfdist run",
    ),
    "tfdist run inside torchrun": (
        {**tfdist_run(), **torchrun(0, 8)}, (1, 2, 1, 2), "127.0.0.1:4000", False, "127.0.0.1", "tfdist run",
    ),
    "TF_CONFIG chief": (
        tf_config(CHIEF, "chief"), (0, 4, 0, 1), "10.0.0.1:2000", True, "10.0.0.1", "TF_CONFIG",
    ),
    "TF_CONFIG worker beside another": (
        tf_config(CHIEF, "worker", 1), (2, 4, 1, 2), "10.0.0.1:2000", False, "10.0.0.2", "TF_CONFIG",
    ),
    "TF_CONFIG with ps": (
        tf_config({"worker": ["10.0.0.1:1", "10.0.0.2:1"], "ps": ["10.0.0.3:1"]}, "worker", 1),
        (1, 2, 0, 1), "10.0.0.1:1", False, "10.0.0.2", "TF_CONFIG",
    ),
    "TF_CONFIG, one worker and ps beside it": (
        tf_config({"worker": ["localhost:1"], "ps": ["localhost:2", "localhost:3"]}),
        (0, 1, 0, 1), "localhost:1", True, "localhost", "TF_CONFIG",
    ),
    "TF_CONFIG, one worker and ps elsewhere": (
        {**tf_config({"worker": ["10.0.0.1:1"], "ps": ["10.0.0.3:1"]}), **BOUND},
        (0, 1, 0, 1), "10.0.0.9:1", True, "10.0.0.9", "TF_CONFIG",
    ),
    "TF_CONFIG on one host": (
        tf_config(LOCAL, "worker", 1), (1, 2, 1, 2), "localhost:2000", False, "127.0.0.1", "TF_CONFIG",
    ),
    "TF_CONFIG as ClusterSpec's dict, index as text": (
        tf_config({"worker": {"1": "localhost:7", "0": "localhost:6"}}, "worker", "1"),
        (1, 2, 1, 2), "localhost:6", False, "localhost", "TF_CONFIG",
    ),
    "TF_CONFIG of one": (tf_config({"worker": ["a:1"]}), (0, 1, 0, 1), None, False, "127.0.0.1", "TF_CONFIG"),
    "TF_CONFIG without cluster": ({"TF_CONFIG": "{}"}, (0, 1, 0, 1), None, False, "127.0.0.1", "one worker"),
    "TF_CONFIG before torchrun": (
        {**tf_config(LOCAL, "worker", 0), **torchrun(3, 8)},
        (0, 2, 0, 2), "localhost:2000", True, "localhost", "TF_CONFIG",
    ),
    "torchrun": (
        torchrun(1, 2, LOCAL_RANK="1", LOCAL_WORLD_SIZE="2"),
        (1, 2, 1, 2), "127.0.0.1:5000", False, "127.0.0.1", "torchrun",
    ),
    "torchrun with the agent's store": (
        torchrun(0, 2, LOCAL_RANK="0", LOCAL_WORLD_SIZE="2", TORCHELASTIC_USE_AGENT_STORE="True"),
        (0, 2, 0, 2), "127.0.0.1:5001", True, "127.0.0.1", "torchrun",
    ),
    "torchrun, TFDIST_PORT": (
        torchrun(0, 2, TFDIST_PORT="77"), (0, 2, 0, 2), "127.0.0.1:77", True, "127.0.0.1", "torchrun",
    ),
    "torchrun on several hosts, rank 0": (
        torchrun(0, 4, "10.0.0.1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2"),
        (0, 4, 0, 2), "10.0.0.1:5000", True, "10.0.0.1", "torchrun",
    ),
    "torchrun on several hosts, rank 3": (
        {**torchrun(3, 4, "10.0.0.1", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2"), **BOUND},
        (3, 4, 1, 2), "10.0.0.1:5000", False, "10.0.0.9", "torchrun",
    ),
    "PyTorchJob, which sets no LOCAL_RANK": (
        {**torchrun(1, 2, "10.0.0.1"), **BOUND}, (1, 2, 0, 1), "10.0.0.1:5000", False, "10.0.0.9", "torchrun",
    ),
    "torchrun of one": (torchrun(0, 1), (0, 1, 0, 1), None, False, "127.0.0.1", "torchrun"),
    "srun": (
        {**slurm(), **BOUND}, (3, 5, 0, 2), f"10.0.0.1:{20000 + 31 * 7 + 2}", False, "10.0.0.9", "Slurm",
    ),
    "srun, rank 0": (
        slurm(0, 5, 0, 0), (0, 5, 0, 3), f"10.0.0.1:{20000 + 31 * 7 + 2}", True, "10.0.0.1", "Slurm",
    ),
    "srun, MASTER_ADDR set by the batch script": (
        slurm(0, 5, 0, 0, "n[1-2]", MASTER_ADDR="10.0.0.5", MASTER_PORT="91"),
        (0, 5, 0, 3), "10.0.0.5:91", True, "10.0.0.5", "Slurm",
    ),
    "srun on one host": (
        slurm(1, 2, 0, 1, "node", "2", TFDIST_PORT="88"),
        (1, 2, 1, 2), "127.0.0.1:88", False, "127.0.0.1", "Slurm",
    ),
    "sbatch without srun": (
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7", "SLURM_NODELIST": "a,b"},
        (0, 1, 0, 1), None, False, "127.0.0.1", "one worker",
    ),
    "srun torchrun": (
        {**slurm(0, 1, 0, 0, "node", "1"), **torchrun(1, 2), "TORCHELASTIC_RUN_ID": "x"},
        (1, 2, 1, 2), "127.0.0.1:5000", False, "127.0.0.1", "torchrun",
    ),
    "mpirun in a Slurm allocation": (
        {**slurm(0, 1, 0, 0, "node", "1"), **open_mpi(1, 2, TFDIST_PORT="99")},
        (1, 2, 1, 2), "127.0.0.1:99", False, "127.0.0.1", "MPI",
    ),
    "Open MPI on several hosts": (
        {**open_mpi(), **BOUND, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "6000"},
        (1, 4, 1, 2), "10.0.0.1:6000", False, "10.0.0.9", "MPI",
    ),
    "Intel MPI on one host": (
        {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "TFDIST_PORT": "99"},
        (1, 2, 1, 2), "127.0.0.1:99", False, "127.0.0.1", "MPI",
    ),
    "mpirun of one": (open_mpi(0, 1, 0, 1), (0, 1, 0, 1), None, False, "127.0.0.1", "MPI"),
}  # fmt: skip


NUM_SERVERS = {"TF_CONFIG with ps": 1, "tfdist run with servers": 3, "tfdist run, one worker with servers": 2,
               "TF_CONFIG, one worker and ps beside it": 2, "TF_CONFIG, one worker and ps elsewhere": 1}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_place(row):
    environ, place, store, serves, bind_host, source = ROWS[row]
    cluster = resolve({**SECRET, **environ})
    assert (cluster.rank, cluster.world_size, cluster.local_rank, cluster.local_world_size) == place
    assert (cluster.store_address, cluster.serves_store, cluster.source) == (store, serves, source)
    assert cluster.bind_host == bind_host
    assert cluster.num_servers == NUM_SERVERS.get(row, 0)
    assert cluster.secret == (b"of this test" if cluster.world_size > 1 or cluster.num_servers else b"")
    assert "of this test" not in repr(cluster)


def _without(environ, *names):
    return {key: value for key, value in environ.items() if key not in names}


REFUSED = {
    "rank too big": (tfdist_run(rank=2), "TFDIST_RANK=2, TFDIST_WORLD_SIZE=2"),
    "local rank too big": (tfdist_run(local_rank=2), "TFDIST_LOCAL_RANK=2, TFDIST_LOCAL_WORLD_SIZE=2"),
    "more local than all": (tfdist_run(local_size=3), "local_world_size=3, world_size=2, from tfdist run"),
    "half set": (_without(tfdist_run(), "TFDIST_WORLD_SIZE"), "without TFDIST_WORLD_SIZE"),
    "rank alone": ({"TFDIST_RANK": "0"}, "Received: TFDIST_RANK without TFDIST_WORLD_SIZE, TFDIST_LOCAL_RANK"),
    "no number": ({**tfdist_run(), "TFDIST_RANK": "one"}, "TFDIST_RANK is expected to be an integer >= 0.*'one'"),
    "negative": ({**tfdist_run(), "TFDIST_RANK": "-1"}, "TFDIST_RANK is expected to be an integer >= 0"),
    "no address": ({**tfdist_run(), "TFDIST_STORE": "here"}, "TFDIST_STORE is expected to be host:port"),
    "no JSON": ({"TF_CONFIG": "{worker"}, "TF_CONFIG is expected to be JSON"),
    "JSON of another kind": ({"TF_CONFIG": "[1]"}, "TF_CONFIG is expected to be JSON"),
    "no task": ({"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}}'}, "TF_CONFIG is expected to be JSON.*'task'"),
    "addresses as text": (tf_config({"worker": "a:1"}), "TF_CONFIG is expected to be JSON.*a list of addresses"),
    "index out of range": (tf_config(LOCAL, "worker", 2), "task=worker:2, cluster=worker:0, worker:1"),
    "unknown task": (tf_config(LOCAL, "wroker", 0), "Received: task=wroker:0"),
    "chief that is not there": (tf_config(LOCAL, "chief", 0), "Received: task=chief:0"),
    "evaluator": (tf_config({**LOCAL, "evaluator": ["c:1"]}, "evaluator", 0), "takes no part in training"),
    "ps": (
        tf_config({**LOCAL, "ps": ["c:1"]}, "ps", 0),
        '"type": \'ps\'.*Start `python -m tfdist.parameter_server` in that task instead of the training script',
    ),
    "no number of servers": ({**tfdist_run(), "TFDIST_NUM_SERVERS": "two"}, "TFDIST_NUM_SERVERS is expected to be an"),
    "ps at a worker's address": (tf_config({**LOCAL, "ps": ["localhost:2000"]}), "an address of its own"),
    "loopback ps of another host's workers": (
        tf_config({"worker": ["a:1"], "ps": ["localhost:1"]}), "hosts that reach each other"
    ),
    "two chiefs": (tf_config({"chief": ["a:1", "b:1"]}, "chief"), "at most one chief"),
    "one address twice": (tf_config({"worker": ["a:1", "a:1"]}), "an address of its own"),
    "port missing": (tf_config({"worker": ["a", "b"]}), "TF_CONFIG is expected to be host:port"),
    "loopback and another": (tf_config({"worker": ["localhost:1", "b:1"]}), "hosts that reach each other"),
    "torchrun half set": ({"RANK": "0"}, "Received: RANK='0' without WORLD_SIZE"),
    "torchrun without master": (
        _without(torchrun(), "MASTER_PORT"), "MASTER_ADDR and MASTER_PORT are expected.*no MASTER_PORT"
    ),
    "torchrun rank": (torchrun(2, 2), "RANK=2, WORLD_SIZE=2"),
    "torchrun port": (torchrun(port="x"), "MASTER_ADDR:MASTER_PORT is expected to be host:port"),
    "torchrun, loopback for several hosts": (
        torchrun(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1"), "MASTER_ADDR is expected to be an address that all hosts reach"
    ),
    "Slurm, other sizes": (slurm(size=6), "The Slurm variables are expected to agree.*SLURM_STEP_NUM_TASKS=6"),
    "Slurm, node list": (slurm(nodes="a[2-1]"), "SLURM_STEP_NODELIST is expected to hold ranges"),
    "Open MPI on several hosts": (open_mpi(), "MASTER_ADDR and MASTER_PORT are expected when MPI puts"),
    "PMIx alone": ({"PMIX_RANK": "1"}, "PMIX_RANK is expected beside"),
    "port": (torchrun(TFDIST_PORT="0"), "TFDIST_PORT is expected to be from 1 to 65535"),
    "two secrets": ({**tfdist_run(), "TFDIST_SECRET_FILE": "/x"}, "TFDIST_SECRET and TFDIST_SECRET_FILE are expected"),
}  # fmt: skip


@pytest.mark.parametrize("row", REFUSED)
def test_contradictions_are_named_in_one_line(row):
    environ, text = REFUSED[row]
    with pytest.raises(ConfigurationError, match=text) as caught:
        resolve({**SECRET, **environ})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, hosts",
    [
        ("n1", ["n1"]),
        ("n[1-3,7]", ["n1", "n2", "n3", "n7"]),
        ("n[08-10],gpu-a,m[2]", ["n08", "n09", "n10", "gpu-a", "m2"]),
        ("r[1-2]n[01-02]-ib", ["r1n01-ib", "r1n02-ib", "r2n01-ib", "r2n02-ib"]),
    ],
)
def test_node_lists_expand_as_slurm_writes_them(text, hosts):
    assert expand_node_list(text) == hosts


@pytest.mark.parametrize("values", [{"world_size": 2, "local_world_size": 2}, {"num_servers": 1}])
def test_a_cluster_of_several_processes_needs_store_and_secret(values):
    with pytest.raises(ConfigurationError, match="expected to have a store_address and a secret"):
        Cluster(**values)


@pytest.mark.parametrize("values", [{"rank": 1}, {"local_rank": 1}, {"local_world_size": 2}, {"rank": -1}])
def test_a_cluster_of_contradictions_is_refused(values):
    with pytest.raises(ConfigurationError, match="A cluster is expected to have 0 <= rank < world_size"):
        Cluster(**values)
