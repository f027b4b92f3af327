"""A group goes on without those who are lost: real processes that are killed, stopped, cut off, and come again."""

import signal

import numpy as np
import pytest
from job import EXIT_AGAIN, Job
from worker import BEFORE

pytestmark = pytest.mark.multiprocess


def kill(rank, step, point=BEFORE, **more):
    return {"rank": rank, "step": step, "point": point, **more}


def run(tmp_path, num_workers, faults, **options):
    with Job(num_workers, tmp_path, faults=faults, **options) as job:
        done = job.await_end()
        return job, check(job, done)


def check(job, done):
    """Returns step -> the set of those who had a share in it, which must be the same for all who have ended well."""
    assert done, job.story()
    shares = {}
    for process in done:
        for step, mask in process.result["masks"].items():
            slots = frozenset(slot for slot in range(8) if int(mask) >> slot & 1)
            assert shares.setdefault(int(step), slots) == slots, f"{process.name} at {step}: {slots}\n{job.story()}"
    assert sorted(shares) == list(range(min(shares), max(shares) + 1))
    return shares


def assert_lost(shares, rank, step):
    """All had a share before that step, none after it; in it either."""
    for at, slots in shares.items():
        assert at == step or (rank in slots) == (at < step), (at, slots)


@pytest.mark.parametrize("point", [BEFORE, 0, 1, 2])
@pytest.mark.parametrize("rank, transport", [(0, "tcp"), (2, "shm")])
def test_one_is_killed(tmp_path, rank, transport, point):
    job, shares = run(tmp_path, 3, [kill(rank, 10, point)], environment={"TFDIST_TRANSPORT": transport}, size=100_000)
    assert_lost(shares, rank, 10)
    assert len(shares) == 50 and shares[49] == {0, 1, 2} - {rank}
    assert [p.popen.returncode for p in job.ended if p.rank == rank] == [-signal.SIGKILL]


def test_two_are_killed_at_once(tmp_path):
    _, shares = run(tmp_path, 4, [kill(0, 10, 0), kill(2, 10, 1)])
    assert_lost(shares, 0, 10)
    assert_lost(shares, 2, 10)
    assert shares[49] == {1, 3}


def test_one_is_killed_while_the_others_recover(tmp_path):
    _, shares = run(tmp_path, 4, [kill(3, 10, 0), kill(1, 11, BEFORE), kill(0, 12, 2)])
    assert_lost(shares, 3, 10)
    assert_lost(shares, 1, 11)
    assert_lost(shares, 0, 12)
    assert shares[49] == {2}


def test_all_but_one_are_killed(tmp_path):
    job, shares = run(tmp_path, 4, [kill(rank, 5, point) for rank, point in ((0, 0), (1, BEFORE), (3, 1))])
    assert shares[49] == {2} and len(shares) == 50
    assert [process.rank for process in job.ended if process.popen.returncode == 0] == [2]


def test_fewer_than_min_workers_are_left(tmp_path):
    with Job(3, tmp_path, faults=[kill(1, 5, 0)], environment={"TFDIST_MIN_WORKERS": "3"}) as job:
        assert job.await_end() == []
    for process in job.ended:
        if process.rank != 1:
            assert process.popen.returncode == 1, job.story()
            assert (
                "BelowMinimumWorkersError: 2 workers are left of at least 3 (min_workers). Lost: rank 1."
                in process.output
            )


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_stands_still_is_excluded_and_told_to_come_again(tmp_path, rank):
    fault = kill(rank, 5, signal=signal.SIGSTOP, seconds=3)
    environment = {"TFDIST_HEARTBEAT_SECONDS": "1"}
    job, shares = run(tmp_path, 3, [fault], environment=environment, steps=30)
    assert_lost(shares, rank, 5)
    (excluded,) = [process for process in job.ended if process.rank == rank]
    assert excluded.popen.returncode == EXIT_AGAIN, job.story()
    assert f"rank {rank} was silent for too long: rank " in excluded.output


def test_one_that_stands_still_for_less_is_waited_for(tmp_path):
    fault = kill(1, 5, signal=signal.SIGSTOP, seconds=0.5)
    job, shares = run(tmp_path, 3, [fault], environment={"TFDIST_HEARTBEAT_SECONDS": "4"}, steps=10)
    assert set(shares.values()) == {frozenset({0, 1, 2})}
    assert {process.popen.returncode for process in job.ended} == {0}


def test_a_connection_is_cut(tmp_path):
    job, shares = run(tmp_path, 3, [{"rank": 1, "step": 5, "drop": 2}])
    (excluded,) = {0, 1, 2} - shares[49]  # each accused the other
    first = min(step for step, slots in shares.items() if len(slots) < 3)  # the cut is noticed some time later
    assert excluded in (1, 2) and first >= 5
    assert_lost(shares, excluded, first)
    assert [process.popen.returncode for process in job.ended if process.rank == excluded] == [EXIT_AGAIN]


def await_member(job, rank, incarnation):
    """Waits until an incarnation has joined."""
    while job.store.items(f"elastic/joined/{rank}") != {f"elastic/joined/{rank}": str(incarnation).encode()}:
        assert rank in job.running, job.story()
        job.look()


@pytest.mark.parametrize("rank", [0, 1])
def test_one_comes_again_and_has_a_share_again(tmp_path, rank):
    with Job(3, tmp_path, restarts=True, faults=[kill(rank, 5, 1)], is_open=True, steps=100_000) as job:
        await_member(job, rank, 1)
        job.store.set("stop", b"")
        done = job.await_end()
        shares = check(job, done)
    assert sorted(process.rank for process in done) == [0, 1, 2]
    (again,) = [process.result for process in done if process.rank == rank]
    for step, slots in shares.items():
        if step != 5:
            assert (rank in slots) == (step < 5 or step >= again["first"]), (step, slots)
    assert shares[len(shares) - 1] == {0, 1, 2}


@pytest.mark.parametrize("rank", [0, 2])
def test_one_dies_while_another_one_joins(tmp_path, rank):
    faults = [kill(1, 5), kill(rank, 0, "join")]
    with Job(4, tmp_path, restarts=True, faults=faults, is_open=True, steps=100_000) as job:
        await_member(job, 1, 1)
        await_member(job, rank, 1)
        job.store.set("stop", b"")
        shares = check(job, job.await_end())
    assert shares[len(shares) - 1] == {0, 1, 2, 3}
    assert sorted(process.name for process in job.ended) == sorted(["0-0", "1-0", "1-1", "2-0", "3-0", f"{rank}-1"])
    assert job.store.items("elastic/excluded/1") == {"elastic/excluded/1": b"0"}  # and not the one that has come again


def test_one_dies_while_others_connect_to_it(tmp_path):
    _, shares = run(tmp_path, 4, [kill(1, 5), kill(0, 0, "handshake")])
    assert shares[49] == {2, 3}


def test_one_dies_while_others_connect_to_it_for_the_first_time(tmp_path):
    job, shares = run(tmp_path, 3, [kill(0, 0, "form")], restarts=True, steps=20)
    assert set(shares.values()) == {frozenset({0, 1, 2})}
    assert sorted(process.name for process in job.ended) == ["0-0", "0-1", "1-0", "2-0"]


def test_one_dies_after_it_has_said_how_much_it_will_send(tmp_path):
    with Job(3, tmp_path, gathers=True, faults=[kill(1, 0)]) as job:
        done = job.await_end()
    assert [process.rank for process in done] in ([0, 2], [2, 0]), job.story()
    for process in done:
        assert process.result["texts"] == [["from 0", "", "from 2"]] * 2


def test_one_dies_before_the_group_has_formed(tmp_path):
    job, shares = run(tmp_path, 3, [kill(1, None)], restarts=True, steps=20)
    assert set(shares.values()) == {frozenset({0, 1, 2})}
    assert sorted(process.name for process in job.ended) == ["0-0", "1-0", "1-1", "2-0"]


@pytest.mark.parametrize("rank", [0, 2])
def test_one_dies_while_the_group_forms(tmp_path, rank):
    with Job(3, tmp_path, restarts=True, is_open=True, steps=20) as job:
        job.await_key(f"mesh/0/{rank}")
        job.kill(rank, signal.SIGKILL)
        shares = check(job, job.await_end())
    assert len(shares) == 20 and shares[0] in ({0, 1, 2}, {0, 1, 2} - {rank})


def test_some_are_killed_from_outside_at_any_time(tmp_path):
    random = np.random.default_rng(3)
    with Job(4, tmp_path, steps=100_000, pause=0.0) as job:
        job.await_key("elastic/settings")
        for rank in (1, 0, 3):
            for _ in range(random.integers(1, 60)):
                job.look()
            job.kill(rank, signal.SIGKILL)
        job.store.set("stop", b"")
        shares = check(job, job.await_end())
    assert shares[len(shares) - 1] == {2}
