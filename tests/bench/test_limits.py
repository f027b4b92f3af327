import json
import shutil
import threading

import pytest

from tests.bench.test_serve import _load
from tests.launch.launching import tfdist
from tfdist.bench import limits_library

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def test_no_compiler_is_one_line(monkeypatch):
    with pytest.raises(limits_library.ConfigurationError, match="Received: CXX=no-such-compiler, which is not on"):
        limits_library.build({"CXX": "no-such-compiler"})


@needs_compiler
def test_the_library_is_built_once(tmp_path):
    first = limits_library.build({"XDG_CACHE_HOME": str(tmp_path)})
    made = first.stat().st_mtime_ns
    assert limits_library.build({"XDG_CACHE_HOME": str(tmp_path)}) == first
    assert first.stat().st_mtime_ns == made and len(list(first.parent.iterdir())) == 1


@needs_compiler
@pytest.mark.multiprocess
def test_all_probes_report():
    result = tfdist("bench", "limits", "--bytes", "4,1M", "--rounds", "3", "--json")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len({line["limit"] for line in lines}) == 4 and len(lines) == 8
    assert all(set(line) == {"limit", "nproc", "bytes", "seconds_median", "GBps"} for line in lines)


@needs_compiler
@pytest.mark.multiprocess
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_the_prototype_adds_up(num_ranks):
    """Its ranks check every element before they are timed, at both of its ways and across their border."""
    result = tfdist(
        "bench",
        "all-reduce",
        "--limits",
        "--world-size",
        num_ranks,
        "--bytes",
        "4,8K,12K,1000000,64K",
        "--rounds",
        "3",
        "--json",
    )
    assert result.returncode == 0, result.stderr
    assert sum(json.loads(line)["peer"] == "limit" for line in result.stdout.splitlines()) == 5


def test_ranks_of_the_probe_meet_on_loopback(tmp_path):
    rank_limit = _load_limit()
    found = {}

    def meet(rank):
        found[rank] = rank_limit._connect(tmp_path, rank, 3)

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    for rank, sockets in found.items():
        assert sockets[rank] is None
        for peer, sock in enumerate(sockets):
            if sock is not None:
                sock.sendall(bytes([rank]))
                assert found[peer][rank].recv(1) == bytes([rank])
    for sock in filter(None, (sock for sockets in found.values() for sock in sockets)):
        sock.close()


def _load_limit():
    import sys

    sys.modules.setdefault("serve", _load("serve"))
    return _load("rank_limit")
