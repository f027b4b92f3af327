"""Workers started by `tfdist run`, which also serves the store."""

from tfdist.cluster.address import parse_address
from tfdist.cluster.cluster import Cluster
from tfdist.cluster.host import LOOPBACK, is_loopback, own_address
from tfdist.cluster.secret import find_secret
from tfdist.cluster.variables import place
from tfdist.errors import ConfigurationError

VARIABLES = ("TFDIST_RANK", "TFDIST_WORLD_SIZE", "TFDIST_LOCAL_RANK", "TFDIST_LOCAL_WORLD_SIZE", "TFDIST_STORE")


def from_tfdist_run(environ):
    """Returns the Cluster, or None where no TFDIST_RANK and the like are set."""
    present = [name for name in VARIABLES if environ.get(name, "")]
    missing = [name for name in VARIABLES if name not in present]
    if not present:
        return None
    if missing:
        raise ConfigurationError(
            f"{', '.join(VARIABLES)} are expected together, as `tfdist run` sets them. "
            f"Received: {', '.join(present)} without {', '.join(missing)}. Unset them, or set all."
        )
    rank, world_size = place(environ, "TFDIST_RANK", "TFDIST_WORLD_SIZE")
    local_rank, local_world_size = place(environ, "TFDIST_LOCAL_RANK", "TFDIST_LOCAL_WORLD_SIZE")
    store_host, _ = parse_address(environ["TFDIST_STORE"], "TFDIST_STORE")
    place_of_worker = {"rank": rank, "world_size": world_size, "local_rank": local_rank,
                       "local_world_size": local_world_size, "source": "tfdist run"}  # fmt: skip
    if world_size == 1:
        return Cluster(**place_of_worker)
    one_host = local_world_size == world_size or is_loopback(store_host)
    return Cluster(
        **place_of_worker,
        store_address=environ["TFDIST_STORE"],
        bind_host=LOOPBACK if one_host else own_address(environ, towards=store_host),
        secret=find_secret(environ, one_host=one_host, source="tfdist run"),
    )
