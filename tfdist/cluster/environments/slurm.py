"""A step of Slurm (srun). A batch script without srun is one worker: nobody else was started.

Rank 0 serves the store on the first node, at a port that follows from the job and step; MASTER_ADDR and MASTER_PORT win.
"""

import re

from tfdist.cluster.address import format_address
from tfdist.cluster.cluster import Cluster
from tfdist.cluster.host import LOOPBACK, own_address
from tfdist.cluster.secret import find_secret
from tfdist.cluster.variables import integer, place, port
from tfdist.errors import ConfigurationError

_FIRST_PORT, _NUM_PORTS = 20000, 10000  # below the range that systems hand out by themselves
_INNER_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_RANK", "MPI_LOCALRANKID")


def from_slurm(environ):
    """Returns the Cluster, or None outside a step of srun."""
    in_step = environ.get("SLURM_PROCID", "") and environ.get("SLURM_STEP_NODELIST", "")
    # Under `srun torchrun` and mpirun, Slurm's task is the launcher, and this process is one of its children.
    if not in_step or any(environ.get(name, "") for name in _INNER_LAUNCHERS):
        return None
    size_name = "SLURM_STEP_NUM_TASKS" if environ.get("SLURM_STEP_NUM_TASKS", "") else "SLURM_NTASKS"
    rank, world_size = place(environ, "SLURM_PROCID", size_name)
    node = integer(environ, "SLURM_NODEID", 0)
    hosts = expand_node_list(environ["SLURM_STEP_NODELIST"])
    tasks = _tasks_per_node(environ, hosts, world_size)
    if not node < len(hosts) == len(tasks) or sum(tasks) != world_size:
        raise ConfigurationError(
            "The Slurm variables are expected to agree. Received: "
            f"{size_name}={world_size}, SLURM_NODEID={node}, SLURM_STEP_NODELIST={len(hosts)} hosts, "
            f"SLURM_STEP_TASKS_PER_NODE={tasks}. Start the script by srun."
        )
    local_rank = integer(environ, "SLURM_LOCALID", 0)
    shared = {"rank": rank, "world_size": world_size, "local_rank": local_rank,
              "local_world_size": tasks[node], "source": "Slurm"}  # fmt: skip
    if world_size == 1:
        return Cluster(**shared)
    one_host, serves = len(hosts) == 1, rank == 0
    job, step = integer(environ, "SLURM_JOB_ID", 0), integer(environ, "SLURM_STEP_ID", 0)
    default_port = integer(environ, "MASTER_PORT", _FIRST_PORT + (31 * job + step) % _NUM_PORTS)
    port_number = port(environ, default_port)
    first_host = environ.get("MASTER_ADDR", "") or hosts[0]  # batch scripts set it where node names do not resolve
    own_name = first_host if serves else hosts[node]
    bind_host = LOOPBACK if one_host else own_address(environ, name=own_name, towards=first_host)
    return Cluster(
        **shared,
        store_address=format_address(bind_host if serves or one_host else first_host, port_number),
        serves_store=serves,
        bind_host=bind_host,
        secret=find_secret(environ, one_host=one_host, source="Slurm"),
    )


def expand_node_list(text):
    """Expands Slurm's shorthand: "n[08-10,12],m" becomes ["n08", "n09", "n10", "n12", "m"]."""
    hosts = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        names = [""]
        for literal, ranges in re.findall(r"([^\[]+)|\[([^\]]*)\]", item):
            names = [name + part for name in names for part in (_expand_ranges(ranges) if ranges else [literal])]
        hosts += names
    return hosts


def _expand_ranges(text):
    parts = []
    for item in text.split(","):
        first, _, last = item.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal() and int(first) <= int(last or first)):
            raise ConfigurationError(
                "SLURM_STEP_NODELIST is expected to hold ranges like [1-3,7]. "
                f"Received: [{text}]. Correct it, or start the script by srun."
            )
        parts += [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]
    return parts


def _tasks_per_node(environ, hosts, world_size):
    """Expands "2(x3),1" to [2, 2, 2, 1]."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE", "") or environ.get("SLURM_TASKS_PER_NODE", "")
    if not text and len(hosts) == 1:
        return [world_size]
    tasks = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item)
        tasks += [int(match[1])] * int(match[2] or 1) if match else []
    return tasks
