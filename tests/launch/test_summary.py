"""`tfdist run --summary`, with what servers would have written."""

import json

import pytest
from launching import tfdist

from tfdist.launch import summary


def statistics(index, **workers):
    rows = {
        rank[1:]: {"pushes": pushes, "bytes_received": 3_000_000, "bytes_sent": 5_000_000, "waited_seconds": waited,
                   "staleness": staleness, "dropped": dropped, "seconds": 10.0}
        for rank, (pushes, waited, staleness, dropped) in workers.items()
    }  # fmt: skip
    return {"server": index, "updates": 150, "parameters_bytes": 20_000_000, "workers": rows}


TWO = [
    statistics(1, _0=(100, 0.25, {"0": 60, "2": 40}, 0), _10=(50, 0.0, {"1": 25, "4": 20}, 5)),
    statistics(0, _0=(100, 0.5, {"0": 80, "3": 20}, 0), _10=(50, 0.125, {"0": 45}, 5)),
]
TABLE = """\
worker  pushes  updates/s  mean staleness  max  waited s  MB sent  received  dropped
     0     100       10.0            0.70    3      0.50      6.0      10.0        0
    10      50        4.5            1.17    4      0.12      6.0      10.0        5
server 0: 150 updates, 20.0 MB; server 1: 150 updates, 20.0 MB
"""


def _render(servers, seconds=1.0):
    return summary.render(summary.parse(json.dumps(server).encode() for server in servers), seconds)


def test_a_table_with_one_line_a_worker():
    assert _render(TWO) == TABLE


def test_the_jobs_own_time_serves_where_a_server_gives_none():
    server = statistics(0, _0=(100, 0.0, {}, 0))
    del server["workers"]["0"]["seconds"], server["workers"]["0"]["dropped"]
    assert _render([server], seconds=50.0).splitlines()[1].split() == "0 100 2.0 0.00 0 0.00 3.0 5.0 0".split()


def test_servers_without_workers_and_no_servers():
    assert _render([statistics(0)]).splitlines()[1:] == ["server 0: 150 updates, 20.0 MB"]
    assert _render([]) == "tfdist run: no parameter server has left statistics: nobody trained through one.\n"


@pytest.mark.parametrize(
    "value",
    [b"", b"\xff", b"[]", b"{}", b'{"server": 0, "updates": Infinity, "parameters_bytes": 0, "workers": {}}',
     b'{"server": 0, "updates": 0, "parameters_bytes": 0, "workers": {"0": {"pushes": "many"}}}'],
)  # fmt: skip
def test_what_is_no_statistics_is_left_out(value):
    assert summary.parse([value, json.dumps(statistics(0)).encode()]) == summary.parse(
        [json.dumps(statistics(0)).encode()]
    )


WRITE = """
from tfdist.cluster.store import StoreClient
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
store = StoreClient(os.environ["TFDIST_STORE"], os.environ["TFDIST_SECRET"].encode(), timeout=20.0)
store.set("ready", b"")
while not ended:
    time.sleep(0.02)
time.sleep(0.3)
index = int(os.environ["TFDIST_SERVER"])
store.set(f"parameter_server/summary/{index}", %r[index])
"""
MEET = """
from tfdist.cluster.store import StoreClient
StoreClient(os.environ["TFDIST_STORE"], os.environ["TFDIST_SECRET"].encode(), timeout=20.0).get("ready")
print("works", flush=True)
"""


def test_servers_write_at_their_end_and_the_table_comes_last(script, server_script):
    server = server_script(WRITE % [json.dumps(server).encode() for server in sorted(TWO, key=str)])
    run = tfdist("run", "-n", "1", "--servers", "1", "--summary", script(MEET), server=server)
    assert run.returncode == 0 and run.stderr == ""
    head, table = run.stdout.split("worker ")
    assert head == "[0] works\n" and table.endswith("server 0: 150 updates, 20.0 MB\n")


def test_a_failed_job_has_no_summary(script, server_script):
    server = server_script(WRITE % [json.dumps(TWO[1]).encode()])
    run = tfdist("run", "-n", "1", "--servers", "1", "--summary", script(MEET + "sys.exit(3)"), server=server)
    assert run.returncode == 3 and run.stdout == "[0] works\n"


def test_without_servers_one_line_says_so(script):
    run = tfdist("run", "-n", "1", "--summary", script("print('works')"))
    assert run.stdout == (
        "[0] works\ntfdist run: no parameter server has left statistics: nobody trained through one.\n"
    )
    assert tfdist("run", "-n", "1", script("print('works')")).stdout == "[0] works\n"
