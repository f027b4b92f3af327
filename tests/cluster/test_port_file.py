import json
import os
import subprocess
import sys
import threading

import pytest

from tfdist.cluster import port_file
from tfdist.cluster.address import parse_address
from tfdist.cluster.environments.mpi import from_mpi
from tfdist.cluster.store import StoreClient, StoreServer
from tfdist.errors import RendezvousError


@pytest.fixture
def environ(tmp_path):
    yield {"XDG_RUNTIME_DIR": str(tmp_path), "TFDIST_TIMEOUT": "5"}
    while port_file._reservations:
        port_file._reservations.pop().close()


def test_ranks_find_the_port_that_rank_0_publishes(environ):
    found = []
    waiting = threading.Thread(target=lambda: found.append(port_file.published_port(environ, "job", publish=False)))
    waiting.start()
    port = port_file.published_port(environ, "job", publish=True)
    waiting.join(timeout=5)
    assert found == [port]
    with StoreServer("127.0.0.1", port, secret=b"s") as server:
        assert parse_address(server.address)[1] == port
        StoreClient(server.address, b"s", timeout=5.0).close()


def test_another_jobs_port_is_not_taken(environ):
    port_file.published_port(environ, "job", publish=True)
    with pytest.raises(RendezvousError, match="Rank 0 was expected to publish .* timeout=0.2 s"):
        port_file.published_port({**environ, "TFDIST_TIMEOUT": "0.2"}, "another", publish=False)


def test_what_a_dead_rank_published_is_ignored_and_removed(environ, tmp_path):
    port_file.published_port(environ, "job", publish=True)
    (name,) = os.listdir(tmp_path / "tfdist")
    path = tmp_path / "tfdist" / name
    number, pid, started, _ = json.loads(path.read_bytes())
    assert pid == os.getpid()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(timeout=30)
    for writer in ([number, child.pid, started, 0.0], [number, pid, "0", 0.0], [number], "not a list", None):
        path.write_text(json.dumps(writer))
        with pytest.raises(RendezvousError):
            port_file.published_port({**environ, "TFDIST_TIMEOUT": "0.1"}, "job", publish=False)
    port_file.published_port(environ, "another", publish=True)
    assert name not in os.listdir(tmp_path / "tfdist")


def test_a_rank_that_comes_after_rank_0_has_ended_does_not_wait(environ):
    code = (
        "from tfdist.cluster.port_file import published_port as p; import os; print(p(os.environ, 'j', publish=True))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environ}, check=True, timeout=60, capture_output=True
    )
    assert port_file.published_port(environ, "j", publish=False) == int(run.stdout)


def test_ranks_under_mpirun_meet(environ):
    def variables(rank):
        return {**environ, "XDG_STATE_HOME": environ["XDG_RUNTIME_DIR"], "PMIX_NAMESPACE": "prterun-1@1",
                "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}  # fmt: skip

    first, second = from_mpi(variables(0)), from_mpi(variables(1))
    assert first.store_address == second.store_address and first.secret == second.secret
    assert first.serves_store and not second.serves_store
