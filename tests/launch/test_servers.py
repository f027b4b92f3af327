"""`tfdist run --servers`, with a small script in the place of the parameter server."""

import os
import re
import signal
import time

import pytest
from launching import assert_gone, free_address, pids_in, running, tfdist

SERVE = """
from tfdist.cluster.store import StoreClient

index = os.environ["TFDIST_SERVER"]
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
print(f"pid={os.getpid()}", flush=True)
store = StoreClient(os.environ["TFDIST_STORE"], os.environ["TFDIST_SECRET"].encode(), timeout=20.0)
store.set(f"parameter_server/{index}", b"here")
while not ended:
    time.sleep(0.02)
"""
MEET = """
from tfdist.cluster.store import StoreClient

store = StoreClient(os.environ["TFDIST_STORE"], os.environ["TFDIST_SECRET"].encode(), timeout=20.0)
for index in range(int(os.environ["TFDIST_NUM_SERVERS"])):
    store.get(f"parameter_server/{index}")
"""


def _last(run_or_text):
    return getattr(run_or_text, "stderr", run_or_text).rpartition("tfdist run: ")[2]


def test_servers_and_workers_get_their_places(script, server_script):
    names = ("TFDIST_SERVER", "TFDIST_NUM_SERVERS", "TFDIST_WORLD_SIZE", "TFDIST_LOCAL_WORLD_SIZE", "TFDIST_RANK",
             "TFDIST_TIMEOUT", "CUDA_VISIBLE_DEVICES")  # fmt: skip
    show = f"\nprint([os.environ.get(name) for name in {names}], len(os.sched_getaffinity(0)), flush=True)\n"
    cores = len(os.sched_getaffinity(0))
    server = server_script(show + SERVE.replace("pid=", ""))
    run = tfdist("run", "-n", cores, "--servers", 2, "--timeout", 9, script(MEET + show), server=server,
                 CUDA_VISIBLE_DEVICES="3")  # fmt: skip
    assert run.returncode == 0 and run.stderr == "", run.stderr
    lines = [line for line in run.stdout.splitlines() if "[" in line[3:]]
    size = str(cores)
    expected = [f"[s{index}] {[str(index), '2', size, size, None, '9', '']} {cores}" for index in range(2)]
    expected += [f"[{rank}] {[None, '2', size, size, str(rank), '9', '3']} 1" for rank in range(cores)]
    assert sorted(lines) == sorted(expected)


def test_the_job_ends_with_its_workers_and_the_servers_exit_code_does_not_count(script, server_script):
    server = server_script(SERVE + "print('asked to end', flush=True)\nos._exit(7)")
    run = tfdist("run", "-n", "2", "--servers", "2", script(MEET + "time.sleep(0.2)"), server=server)
    assert run.returncode == 0 and run.stderr == ""
    assert run.stdout.count("asked to end") == 2
    assert_gone(pids_in(run.stdout.splitlines()))


@pytest.mark.parametrize(
    "ending, code, text",
    [
        ("raise ValueError('no room')", 1, r"it failed with exit code 1 after \d+\.\d s\. Its traceback:\nTraceback"),
        (
            "print('why', file=sys.stderr); os._exit(9)",
            9,
            r"it failed with exit code 9 .*last lines on stderr:\nwhy\n$",
        ),
        ("os.kill(os.getpid(), 9)", 137, r"it was killed by SIGKILL \(out of memory\? .*It wrote nothing to stderr"),
        ("sys.exit(0)", 1, r"it returned after \d+\.\d s\. It wrote nothing to stderr"),
    ],
)
def test_a_server_that_ends_before_the_workers_ends_the_job(script, server_script, ending, code, text):
    server = server_script(SERVE.replace("while not ended", f"if index == '1':\n    {ending}\nwhile not ended"))
    start = time.monotonic()
    run = tfdist("run", "-n", "2", "--servers", "2", "--no-recover", script(MEET + "time.sleep(60)"), server=server)
    assert time.monotonic() - start < 10
    assert run.returncode == code
    assert re.match(f"server 1 ended before the workers: {text}", _last(run)), run.stderr
    assert_gone(pids_in(run.stdout.splitlines()))


def test_a_worker_that_lost_its_server_is_not_blamed(script, server_script):
    """The worker fails first, for the server closes its connections before it has ended."""
    server = server_script("time.sleep(0.6)\nos._exit(9)")
    path = script("class ServerLostError(Exception): pass\nraise ServerLostError('lost server 0')")
    run = tfdist("run", "-n", "1", "--servers", "1", path, server=server)
    assert run.returncode == 9 and _last(run).startswith("server 0 ended before the workers"), run.stderr


def test_a_failing_worker_is_blamed_and_the_servers_outlive_the_workers(script, server_script):
    server = server_script(SERVE + "print('server ends', flush=True)")
    path = script(
        MEET
        + """
if rank == 1:
    os._exit(5)
def handler(*_):
    time.sleep(0.3)
    print("worker ends", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, handler)
time.sleep(60)
"""
    )
    run = tfdist("run", "-n", "2", "--servers", "1", path, server=server)
    assert run.returncode == 5 and _last(run).startswith("rank 1 of 2 failed with exit code 5")
    ends = [line for line in run.stdout.splitlines() if line.endswith("ends")]
    assert ends == ["[0] worker ends", "[s0] server ends"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_servers_too(script, server_script, number):
    with running("run", "-n", "1", "--servers", "2", script(MEET + "print('ready', flush=True)\ntime.sleep(60)"),
                 lines=3, server=server_script(SERVE + "print('asked to end', flush=True)")) as launcher:  # fmt: skip
        launcher.send_signal(number)
        stdout, stderr = launcher.communicate(timeout=30)
        assert launcher.returncode == 128 + number
        assert stdout.count("asked to end") == 2 and stderr.endswith(f"tfdist run: stopped by {number.name}.\n")
        assert len(pids_in(launcher.first_lines)) == 2
        assert_gone(pids_in(launcher.first_lines))


def test_servers_that_do_not_listen_are_killed(script, server_script):
    server = server_script("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
                           "print(f'pid={os.getpid()}', flush=True)\ntime.sleep(60)")  # fmt: skip
    with running("run", "-n", "1", "--servers", "1", script("time.sleep(60)"), lines=1, server=server) as launcher:
        launcher.send_signal(signal.SIGINT)
        start = time.monotonic()
        launcher.communicate(timeout=30)
        assert launcher.returncode == 130 and time.monotonic() - start < 10
        assert_gone(pids_in(launcher.first_lines))


def test_no_server_is_left_after_sigkill_of_the_launcher(script, server_script):
    path = script(MEET + "print(f'pid={os.getpid()}', flush=True)\ntime.sleep(60)")
    with running("run", "-n", "1", "--servers", "1", path, lines=2, server=server_script(SERVE)) as launcher:
        launcher.kill()
        assert len(pids_in(launcher.first_lines)) == 2
        assert_gone(pids_in(launcher.first_lines))


def test_servers_run_on_node_0_until_the_workers_of_all_nodes_have_ended(script, server_script):
    path = script(MEET + "time.sleep(0.8 if rank else 0.0)\nprint(store.get('parameter_server/0'))")
    nodes = ("run", "-n", "1", "--servers", "1", "--nodes", "2", "--address", free_address())
    server = server_script(SERVE + "time.sleep(0.3)\nprint('server ends', flush=True)")
    more = {"TFDIST_SECRET": "of this test", "server": server}
    with running(*nodes, "--node-rank", "1", path, **more) as second:
        first = tfdist(*nodes, path, **more)
        stdout, stderr = second.communicate(timeout=30)
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + stderr
        assert stdout == "[1] b'here'\n"
        assert [line for line in first.stdout.splitlines() if "pid" not in line] == ["[0] b'here'", "[s0] server ends"]


AGAIN = """
incarnation = int(os.environ["TFDIST_INCARNATION"])
store.set(f"incarnation/{index}/{incarnation}", b"")
store.set(f"parameter_server/{index}", f"{incarnation}".encode())
"""


def test_a_server_that_is_killed_is_started_again(script, server_script):
    """More often than a place that keeps failing: each of its lives has come to where workers find it."""
    server = server_script(
        SERVE.replace("while not", AGAIN + "if incarnation < 5:\n    os.kill(os.getpid(), 9)\nwhile not")
    )
    path = script(MEET + "store.get('incarnation/0/5')")
    run = tfdist("run", "-n", "2", "--servers", "1", "--max-restarts", "9", path, server=server)
    assert run.returncode == 0, run.stderr
    said = [line for line in run.stderr.splitlines() if line.startswith("tfdist run: ")]
    assert len(said) == 5 and all(
        re.match("tfdist run: server 0 was killed by SIGKILL .* started again in", line) for line in said
    )
    assert_gone(pids_in(run.stdout.splitlines()))


def test_a_server_that_is_given_up_ends_the_job(script, server_script):
    server = server_script("os.kill(os.getpid(), 9)")
    run = tfdist("run", "-n", "1", "--servers", "1", script(MEET + "time.sleep(60)"), server=server)
    assert run.returncode == 137
    assert re.match(r"server 0 ended before the workers: it was killed by SIGKILL .* It is not started again, for 3 times",
                    _last(run)), run.stderr  # fmt: skip


def test_a_server_that_fails_by_itself_still_ends_the_job(script, server_script):
    server = server_script(SERVE.replace("while not", "os._exit(3)\nwhile not"))
    run = tfdist("run", "-n", "2", "--servers", "1", script(MEET + "time.sleep(60)"), server=server)
    assert run.returncode == 3 and _last(run).startswith(
        "server 0 ended before the workers: it failed with exit code 3"
    )


ASK = """
from tfdist.cluster.store import StoreClient

store = StoreClient(os.environ["TFDIST_STORE"], os.environ["TFDIST_SECRET"].encode(), timeout=20.0)
store.set("launch/servers/1", b"")
store.set("launch/servers/2", b"")
"""


def test_servers_that_workers_ask_for_outlive_who_has_asked(script, server_script):
    path = script(
        ASK
        + """
for index in range(2):
    store.get(f"parameter_server/{index}")
if rank == 0:
    os.kill(os.getpid(), signal.SIGKILL)
store.get("elastic/dead/0")
time.sleep(0.2)
print("servers:", os.environ.get("TFDIST_NUM_SERVERS"))
"""
    )
    server = server_script(SERVE)
    run = tfdist("run", "-n", "2", "--max-restarts", "0", path, server=server)
    assert run.returncode == 0, run.stderr
    assert "[1] servers: None" in run.stdout
    assert_gone(pids_in(run.stdout.splitlines()))
