"""mpirun and mpiexec: Open MPI, and those that speak PMI (MPICH, Intel MPI, MVAPICH).

No MPI call is made: MPI only starts the processes. On one host rank 0 reserves a free port and publishes it in the user's
runtime directory under the job's id. For several hosts name rank 0's address: `mpirun -x MASTER_ADDR -x MASTER_PORT`.
"""

import os

from tfdist.cluster.address import format_address
from tfdist.cluster.cluster import Cluster
from tfdist.cluster.environments.torchrun import master
from tfdist.cluster.host import LOOPBACK, own_address
from tfdist.cluster.port_file import published_port
from tfdist.cluster.secret import find_secret
from tfdist.cluster.variables import place
from tfdist.errors import ConfigurationError

_FAMILIES = (  # rank, size, local rank, local size
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
_JOB_IDS = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID")


def from_mpi(environ):
    """Returns the Cluster, or None where no MPI launcher started this process."""
    if environ.get("TORCHELASTIC_RUN_ID", ""):
        return None  # mpirun started torchrun, and that started this process
    for names in _FAMILIES:
        found = place(environ, *names[:2], required=False)
        if found is not None:
            local = place(environ, *names[2:], required=False)
            return _place(environ, *found, local)
    if environ.get("PMIX_RANK", ""):
        raise ConfigurationError(
            "PMIX_RANK is expected beside OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE. "
            f"Received: PMIX_RANK={environ['PMIX_RANK']!r} alone, which does not say how many workers there are. "
            "Start the script by mpirun, srun or `tfdist run`."
        )
    return None


def _place(environ, rank, world_size, local):
    if world_size == 1:
        return Cluster(source="MPI")
    one_host = local is not None and local[1] == world_size
    local_rank, local_world_size = local or (0, 1)
    named = any(environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    if not one_host and not named:
        raise ConfigurationError(
            "MASTER_ADDR and MASTER_PORT are expected when MPI puts workers on several hosts. "
            f"Received: neither, world_size={world_size}, local_world_size={local_world_size}. "
            "Set them to rank 0's address and a free port there, as in `mpirun -x MASTER_ADDR=... -x MASTER_PORT=...`."
        )
    if one_host:
        # The secret is read first: its errors come before a port is taken.
        bind_host = store_host = LOOPBACK
        secret = find_secret(environ, one_host=True, source="MPI")
        port_number = published_port(environ, _job_id(environ), publish=rank == 0)
    else:
        store_host, port_number = master(environ)
        bind_host = own_address(environ, name=store_host if rank == 0 else None, towards=store_host)
        store_host = bind_host if rank == 0 else store_host
        secret = find_secret(environ, one_host=False, source="MPI")
    return Cluster(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        store_address=format_address(store_host, port_number),
        serves_store=rank == 0,
        bind_host=bind_host,
        secret=secret,
        source="MPI",
    )


def _job_id(environ):
    for name in _JOB_IDS:
        if environ.get(name, ""):
            return environ[name]
    return f"parent-{os.getppid()}"  # Hydra's proxy is the parent of all ranks of a host
