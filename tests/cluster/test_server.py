"""One table: the variables of what starts parameter servers, and the place they mean."""

import json

import pytest

from tfdist.cluster.server import resolve_server
from tfdist.errors import ConfigurationError

SECRET = {"TFDIST_SECRET": "of this test"}
BOUND = {"TFDIST_ADDRESS": "10.0.0.9"}


def started(index=1, servers=2, size=4, store="127.0.0.1:4000", **others):
    return {"TFDIST_SERVER": str(index), "TFDIST_NUM_SERVERS": str(servers), "TFDIST_WORLD_SIZE": str(size),
            "TFDIST_STORE": store, **others}  # fmt: skip


def tf_config(cluster, kind="ps", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


HOSTS = {"chief": ["10.0.0.1:20"], "worker": ["10.0.0.2:20"], "ps": ["10.0.0.3:30", "10.0.0.4:40"]}
ONE_HOST = {"worker": ["localhost:1", "localhost:2"], "ps": ["127.0.0.1:3"]}

ROWS = {  # variables; index, num_servers, world_size; store; where it listens
    "tfdist run": (started(), (1, 2, 4), "127.0.0.1:4000", ("127.0.0.1", 0), "tfdist run"),
    "tfdist run on one host with an address": (
        started(0, 1, 1, "10.0.0.1:5", TFDIST_LOCAL_WORLD_SIZE="1"),
        (0, 1, 1), "10.0.0.1:5", ("127.0.0.1", 0), "tfdist run",
    ),
    "tfdist run, two nodes": (
        {**started(0, 1, 4, "10.0.0.1:5", TFDIST_LOCAL_WORLD_SIZE="2"), **BOUND},
        (0, 1, 4), "10.0.0.1:5", ("10.0.0.9", 0), "tfdist run",
    ),
    "a strategy of a rank on one of several hosts": (
        {**started(0, 1, 4, "10.0.0.1:5"), **BOUND}, (0, 1, 4), "10.0.0.1:5", ("10.0.0.9", 0), "tfdist run",
    ),
    "a strategy under TF_CONFIG": (
        {**started(), **tf_config(HOSTS, "chief")}, (1, 2, 4), "127.0.0.1:4000", ("127.0.0.1", 0), "tfdist run",
    ),
    "TF_CONFIG": (tf_config(HOSTS, index=1), (1, 2, 2), "10.0.0.1:20", ("10.0.0.4", 40), "TF_CONFIG"),
    "TF_CONFIG on one host": (tf_config(ONE_HOST), (0, 1, 2), "localhost:1", ("127.0.0.1", 3), "TF_CONFIG"),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_place(row):
    environ, numbers, store, listens, source = ROWS[row]
    place = resolve_server({**SECRET, **environ})
    assert (place.index, place.num_servers, place.world_size) == numbers
    assert (place.store_address, (place.bind_host, place.port), place.source) == (store, listens, source)
    assert place.secret == b"of this test" and "of this test" not in repr(place)
    assert place.timeout is None
    assert resolve_server({**SECRET, **environ, "TFDIST_TIMEOUT": "9"}).timeout == 9.0


REFUSED = {
    "nothing": ({}, "A parameter server is expected to be started by .*Received: neither TFDIST_SERVER nor TF_CONFIG"),
    "a worker's variables": ({"TFDIST_RANK": "0"}, "A parameter server is expected to be started by"),
    "index too big": (started(2), "TFDIST_SERVER=2, TFDIST_NUM_SERVERS=2"),
    "half set": ({"TFDIST_SERVER": "0"}, "Received: TFDIST_SERVER without TFDIST_NUM_SERVERS, TFDIST_WORLD_SIZE"),
    "no address": (started(store="here"), "TFDIST_STORE is expected to be host:port"),
    "no number": (started(size="many"), "TFDIST_WORLD_SIZE is expected to be an integer >= 0"),
    "TF_CONFIG of a worker": (tf_config(HOSTS, "worker"), "a task of type 'ps'. Received: task=worker:0"),
    "TF_CONFIG index": (tf_config(HOSTS, index=2), "Received: task=ps:2, cluster=ps:0, ps:1"),
    "TF_CONFIG without workers": (tf_config({"ps": ["a:1"]}), "to name workers beside the servers"),
    "TF_CONFIG loopback and another": (
        tf_config({"worker": ["localhost:1"], "ps": ["b:1"]}), "hosts that reach each other"
    ),
    "timeout": (started(TFDIST_TIMEOUT="soon"), "TFDIST_TIMEOUT is expected to be a number"),
}  # fmt: skip


@pytest.mark.parametrize("row", REFUSED)
def test_contradictions_are_named_in_one_line(row):
    environ, text = REFUSED[row]
    with pytest.raises(ConfigurationError, match=text) as caught:
        resolve_server({**SECRET, **environ})
    assert "\n" not in str(caught.value)


def test_several_hosts_need_a_secret():
    with pytest.raises(ConfigurationError, match="TFDIST_SECRET or TFDIST_SECRET_FILE is expected when TF_CONFIG"):
        resolve_server({**tf_config(HOSTS), **BOUND})
