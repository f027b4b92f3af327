"""Workers and parameter servers started by `tfdist run`, which also serves the store."""

from tfdist.cluster.address import parse_address
from tfdist.cluster.cluster import Cluster
from tfdist.cluster.host import LOOPBACK, is_loopback, own_address
from tfdist.cluster.secret import find_secret
from tfdist.cluster.server import ServerPlace
from tfdist.cluster.variables import integer, place
from tfdist.errors import ConfigurationError

VARIABLES = ("TFDIST_RANK", "TFDIST_WORLD_SIZE", "TFDIST_LOCAL_RANK", "TFDIST_LOCAL_WORLD_SIZE", "TFDIST_STORE")
SERVER_VARIABLES = ("TFDIST_SERVER", "TFDIST_NUM_SERVERS", "TFDIST_WORLD_SIZE", "TFDIST_STORE")


def from_tfdist_run(environ):
    """Returns the Cluster, or None where no TFDIST_RANK and the like are set."""
    if not any(environ.get(name, "") for name in VARIABLES):
        return None
    _check_all(environ, VARIABLES)
    rank, world_size = place(environ, "TFDIST_RANK", "TFDIST_WORLD_SIZE")
    local_rank, local_world_size = place(environ, "TFDIST_LOCAL_RANK", "TFDIST_LOCAL_WORLD_SIZE")
    store_host, _ = parse_address(environ["TFDIST_STORE"], "TFDIST_STORE")
    num_servers = integer(environ, "TFDIST_NUM_SERVERS", 0)
    place_of_worker = {"rank": rank, "world_size": world_size, "local_rank": local_rank,
                       "local_world_size": local_world_size, "num_servers": num_servers,
                       "source": "tfdist run"}  # fmt: skip
    if world_size == 1 and not num_servers:
        return Cluster(**place_of_worker)
    one_host = local_world_size == world_size or is_loopback(store_host)
    return Cluster(**place_of_worker, store_address=environ["TFDIST_STORE"], **_binding(environ, one_host, store_host))


def server_from_tfdist_run(environ):
    """Returns the ServerPlace, or None where no TFDIST_SERVER is set."""
    if not environ.get("TFDIST_SERVER", ""):
        return None
    _check_all(environ, SERVER_VARIABLES)
    index, num_servers = place(environ, "TFDIST_SERVER", "TFDIST_NUM_SERVERS")
    world_size = integer(environ, "TFDIST_WORLD_SIZE")
    store_host, _ = parse_address(environ["TFDIST_STORE"], "TFDIST_STORE")
    one_host = integer(environ, "TFDIST_LOCAL_WORLD_SIZE") == world_size or is_loopback(store_host)
    return ServerPlace(
        index=index,
        num_servers=num_servers,
        world_size=world_size,
        store_address=environ["TFDIST_STORE"],
        **_binding(environ, one_host, store_host),
    )


def _check_all(environ, names):
    present = [name for name in names if environ.get(name, "")]
    missing = [name for name in names if name not in present]
    if missing:
        raise ConfigurationError(
            f"{', '.join(names)} are expected together, as `tfdist run` sets them. "
            f"Received: {', '.join(present)} without {', '.join(missing)}. Unset them, or set all."
        )


def _binding(environ, one_host, store_host):
    return {
        "bind_host": LOOPBACK if one_host else own_address(environ, towards=store_host),
        "secret": find_secret(environ, one_host=one_host, source="tfdist run"),
    }
