"""`tfdist run` with places to fill, with time to end, and with several hosts that go on without one of them."""

import os
import re
import signal

import pytest
from launching import PLAY, assert_gone, free_address, lines_with, pids_in, running, said_by, tfdist


def test_sigusr1_adds_workers_until_the_places_are_taken(script):
    path = script(
        PLAY
        + """
if rank == 0:
    for other in (1, 2):
        os.kill(os.getppid(), signal.SIGUSR1)
        store.get(f"here/{other}")
    os.kill(os.getppid(), signal.SIGUSR1)
    time.sleep(0.3)
    over()
    store.set("end", b"")
else:
    join()
    store.set(f"here/{rank}", b"")
    print(os.environ["TFDIST_WORLD_SIZE"], os.environ["TFDIST_LOCAL_WORLD_SIZE"], rank, sorted(os.sched_getaffinity(0)))
    store.get("end")
"""
    )
    run = tfdist("run", "-n", "1", "--max-workers", "3", path)
    assert run.returncode == 0, run.stderr
    started = [line.partition(" pid")[0] for line in lines_with(run, "started")]
    assert started == ["[0] 0 started 0", "[1] 1 started 1", "[2] 2 started 1"]
    cores = sorted(os.sched_getaffinity(0))
    assert lines_with(run, "] 3 3 ") == [f"[{rank}] 3 3 {rank} {cores}" for rank in (1, 2)]
    assert said_by(run) == [
        "tfdist run: rank 1 is added.",
        "tfdist run: rank 2 is added.",
        "tfdist run: no worker is added: all 3 places are taken, see --max-workers.",
    ]


def test_sigusr1_fills_a_place_that_was_given_up(script):
    path = script(
        PLAY
        + """
if rank == 1:
    die() if incarnation == 0 else store.set("again", str(incarnation).encode())
else:
    lost(1)
    time.sleep(0.3)
    os.kill(os.getppid(), signal.SIGUSR1)
    print("again", store.get("again"))
    over()
"""
    )
    run = tfdist("run", "-n", "2", "--max-restarts", "0", path)
    assert run.returncode == 0 and lines_with(run, "again") == ["[0] again b'1'"], run.stderr
    assert said_by(run)[1:] == ["tfdist run: rank 1 is added."]


def test_an_added_worker_that_is_lost_is_started_again(script):
    path = script(
        PLAY
        + """
if rank == 0:
    os.kill(os.getppid(), signal.SIGUSR1)
    print("told of", lost(1))
    store.get("again")
    over()
elif incarnation == 1:
    die()
else:
    join()
    store.set("again", b"")
"""
    )
    run = tfdist("run", "-n", "1", "--max-workers", "2", path)
    assert run.returncode == 0 and lines_with(run, "told") == ["[0] told of 1"], run.stderr


def test_sigusr1_after_the_end_adds_nobody(script):
    path = script(PLAY + "over()\nos.kill(os.getppid(), signal.SIGUSR1)\ntime.sleep(0.3)")
    run = tfdist("run", "-n", "1", "--max-workers", "2", path)
    assert run.returncode == 0
    assert said_by(run) == ["tfdist run: no worker is added: the job has ended."]


@pytest.mark.parametrize(
    "options, number, ends", [((), signal.SIGTERM, True), (("--grace-seconds", "1"), signal.SIGTERM, False),
                              (("--no-recover",), signal.SIGTERM, False), ((), signal.SIGINT, False)]
)  # fmt: skip
def test_sigterm_leaves_time_for_a_last_checkpoint(script, options, number, ends):
    path = script(
        """
        def save(*_):
            time.sleep(4.5)
            print("saved", flush=True)
            os._exit(0)
        signal.signal(signal.SIGTERM, save)
        signal.signal(signal.SIGINT, save)
        print(f"pid={os.getpid()}", flush=True)
        time.sleep(60)
        """
    )
    with running("run", "-n", "2", *options, path, lines=2) as launcher:
        launcher.send_signal(number)
        stdout, _ = launcher.communicate(timeout=30)
        assert launcher.returncode == 128 + number and stdout.count("saved") == (2 if ends else 0)
        assert_gone(pids_in(launcher.first_lines))


@pytest.fixture
def nodes():
    """The arguments of two launchers of one job."""
    base = ("run", "-n", "1", "--nodes", "2", "--address", free_address())
    return (*base, "--node-rank", "0"), (*base, "--node-rank", "1")


SECRET = {"TFDIST_SECRET": "of this test"}


def test_ranks_of_added_workers_come_after_the_first(script, nodes):
    path = script(
        PLAY
        + """
names = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "INITIAL_WORKERS")
print("place", *[os.environ["TFDIST_" + name] for name in names], flush=True)
if rank < 2:
    os.kill(os.getppid(), signal.SIGUSR1)
else:
    join()
meet("all", range(4))
over()
"""
    )
    more = ("--max-workers", "4", path)
    with running(*nodes[1], *more, **SECRET) as second:
        first = tfdist(*nodes[0], *more, **SECRET)
        stdout, stderr = second.communicate(timeout=30)
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + stderr
        places = lines_with(first, "place") + sorted(line for line in stdout.splitlines() if "place" in line)
        assert places == ["[0] place 4 0 2 2", "[2] place 4 1 2 2", "[1] place 4 0 2 2", "[3] place 4 1 2 2"]


def test_a_loss_on_another_node_is_told_and_mended_there(script, nodes):
    path = script(
        PLAY
        + """
if rank == 1 and incarnation == 0:
    die()
if rank == 0:
    print("told of", lost(1), flush=True)
meet("all", range(2))
"""
    )
    with running(*nodes[1], path, **SECRET) as second:
        first = tfdist(*nodes[0], path, **SECRET)
        stdout, stderr = second.communicate(timeout=30)
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + stderr
        assert lines_with(first, "told") == ["[0] told of 0"] and "1 started 1" in stdout
        assert "rank 1 was killed by SIGKILL" in stderr and first.stderr == ""


def test_node_0_serves_the_store_while_others_train(script, nodes):
    """Its own worker is lost for good."""
    path = script(
        PLAY
        + """
if rank == 0:
    die()
lost(0)
time.sleep(2.5)
store.set("still", b"")
print("still there", flush=True)
"""
    )
    more = ("--max-restarts", "0", "--timeout", "2", path)
    with running(*nodes[1], *more, **SECRET) as second:
        first = tfdist(*nodes[0], *more, **SECRET)
        stdout, stderr = second.communicate(timeout=30)
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + stderr
        assert "[1] still there" in stdout
        assert said_by(first)[-1] == "tfdist run: ended well without rank 0, lost for good."


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_failure_ends_the_job_on_all_nodes(script, nodes, culprit):
    path = script(PLAY + f"meet('all', range(2))\nif rank == {culprit}:\n    os._exit(7)\ntime.sleep(60)")
    with running(*nodes[1], path, **SECRET) as second:
        first = tfdist(*nodes[0], path, **SECRET)
        _, stderr = second.communicate(timeout=30)
        codes, texts = (first.returncode, second.returncode), (first.stderr, stderr)
        assert codes[culprit] == 7 and codes[1 - culprit] == 1, texts
        assert f"tfdist run: node {culprit} has failed, see its output: the job ends." in texts[1 - culprit]


def test_a_node_that_is_stopped_leaves_and_the_others_go_on(script, nodes):
    path = script(PLAY + "print('ready', flush=True)\nif rank == 1:\n    time.sleep(60)\nprint('told of', lost(1))")
    with running(*nodes[0], path, **SECRET) as first, running(*nodes[1], path, lines=2, **SECRET) as second:
        second.send_signal(signal.SIGTERM)
        second.communicate(timeout=30)
        stdout, stderr = first.communicate(timeout=30)
        assert (first.returncode, second.returncode) == (0, 143), stderr
        assert "[0] told of 0" in stdout


def test_workers_of_all_nodes_count_for_the_floor(script, nodes):
    path = script(PLAY + "meet('all', range(2))\nif rank == 1:\n    die()\ntime.sleep(60)")
    more = ("--max-restarts", "0", "--min-workers", "2", path)
    with running(*nodes[1], *more, **SECRET) as second:
        first = tfdist(*nodes[0], *more, **SECRET)
        _, stderr = second.communicate(timeout=30)
        assert second.returncode == 137 and first.returncode == 1, first.stderr
        assert re.search(r"rank 1 of 2 was killed .* 1 worker left, fewer than --min-workers 2: the job ends", stderr)
        assert "the job ends." in first.stderr
