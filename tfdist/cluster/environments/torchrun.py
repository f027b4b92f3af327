"""The variables of torchrun, and of everything that imitates it (Kubeflow's PyTorchJob, for one)."""

from tfdist.cluster.address import format_address, parse_address
from tfdist.cluster.cluster import Cluster
from tfdist.cluster.host import LOOPBACK, is_loopback, own_address
from tfdist.cluster.secret import find_secret
from tfdist.cluster.variables import place, port
from tfdist.errors import ConfigurationError


def from_torchrun(environ):
    """Returns the Cluster, or None where neither RANK nor WORLD_SIZE is set."""
    found = place(environ, "RANK", "WORLD_SIZE", required=False)
    if found is None:
        return None
    rank, world_size = found
    if world_size == 1:
        return Cluster(source="torchrun")
    host, port_number = master(environ)
    loopback = is_loopback(host)
    local = place(environ, "LOCAL_RANK", "LOCAL_WORLD_SIZE", required=False)
    local_rank, local_world_size = local or ((rank, world_size) if loopback else (0, 1))
    one_host = local_world_size == world_size
    if loopback and not one_host:
        raise ConfigurationError(
            "MASTER_ADDR is expected to be an address that all hosts reach. "
            f"Received: MASTER_ADDR={host}, LOCAL_WORLD_SIZE={local_world_size}, WORLD_SIZE={world_size}. "
            "Set it to the address of rank 0's host."
        )
    serves = rank == 0
    bind_host = LOOPBACK if one_host else own_address(environ, name=host if serves else None, towards=host)
    return Cluster(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        store_address=format_address(bind_host if serves or one_host else host, port_number),
        serves_store=serves,
        bind_host=bind_host,
        secret=find_secret(environ, one_host=one_host, source="torchrun"),
        source="torchrun",
    )


def master(environ):
    """Returns the host of rank 0 and the port for the store, from MASTER_ADDR and MASTER_PORT."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environ.get(name, "")]
    if missing:
        raise ConfigurationError(
            "MASTER_ADDR and MASTER_PORT are expected beside RANK and WORLD_SIZE. "
            f"Received: no {' and no '.join(missing)}. Set them to the address and a free port of rank 0's host."
        )
    address = format_address(environ["MASTER_ADDR"].strip("[]"), environ["MASTER_PORT"])
    host, port_number = parse_address(address, "MASTER_ADDR:MASTER_PORT")
    if environ.get("TORCHELASTIC_USE_AGENT_STORE", "").lower() == "true":
        port_number += 1  # MASTER_PORT itself is where torchrun's own store listens
    return host, port(environ, port_number)
