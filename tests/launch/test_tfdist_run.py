"""`tfdist run` with real processes. The scripts do without TensorFlow, so that each takes a fraction of a second."""

import os
import pathlib
import re
import signal
import sys
import time

import pytest
from launching import assert_gone, free_address, is_running, pids_in, running, tfdist

PRINT_PIDS = """
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    print(f"pid={os.getpid()} pid={child.pid}")
"""


def test_the_script_gets_its_arguments_and_each_rank_its_place(script):
    path = script(
        """
        print(sys.argv[1:], __name__, os.environ["TFDIST_RANK"], os.environ["TFDIST_LOCAL_RANK"],
              os.environ["TFDIST_WORLD_SIZE"], os.environ["TFDIST_LOCAL_WORLD_SIZE"])
        """
    )
    run = tfdist("run", "-n", "3", path, "-n", "7", "--strategy", "x", "--", "-m")
    assert run.returncode == 0, run.stderr
    words = ["-n", "7", "--strategy", "x", "--", "-m"]
    assert sorted(run.stdout.splitlines()) == [f"[{r}] {words} __main__ {r} {r} 3 3" for r in range(3)]
    assert run.stderr == ""


def test_modules_run_too(tmp_path):
    (tmp_path / "my_module.py").write_text("import sys; print(sys.argv[1:])")
    run = tfdist("run", "-n2", "-m", "my_module", "-m", cwd=tmp_path)
    assert sorted(run.stdout.splitlines()) == ["[0] ['-m']", "[1] ['-m']"], run.stderr


def test_two_are_started_by_default(script):
    assert len(tfdist("run", script("print(rank)")).stdout.splitlines()) == 2


def test_one_worker(script):
    run = tfdist("run", "-n", "1", script("import tfdist; print(tfdist.rank(), tfdist.size()); sys.exit(5)"))
    assert run.stdout == "[0] 0 1\n"
    assert run.returncode == 5
    assert run.stderr.endswith("s. It wrote nothing to stderr.\n")


def test_workers_meet_in_the_store_of_the_launcher(script):
    path = script(
        """
        import tfdist
        from tfdist.cluster.store import StoreClient
        cluster = tfdist.cluster.current()
        with StoreClient(cluster.store_address, cluster.secret, timeout=20.0) as store:
            store.set(f"from/{cluster.rank}", str(cluster.rank).encode())
            print(store.get(f"from/{1 - cluster.rank}"), cluster.serves_store, cluster.timeout, cluster.source)
        """
    )
    run = tfdist("run", "-n", "2", "--timeout", "9", path)
    assert sorted(run.stdout.splitlines()) == ["[0] b'1' False 9.0 tfdist run", "[1] b'0' False 9.0 tfdist run"]


def test_the_secret_is_on_no_command_line(script):
    path = script(
        """
        secret = os.environ["TFDIST_SECRET"]
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            try:
                words = open(f"/proc/{pid}/cmdline").read()
            except OSError:
                continue
            assert secret not in words, words
        print(len(secret))
        """
    )
    run = tfdist("run", "-n", "2", path)
    assert run.stdout == "[0] 64\n[1] 64\n" or run.stdout == "[1] 64\n[0] 64\n", run.stderr


def test_lines_of_different_ranks_are_never_mixed(script):
    path = script(
        """
        for number in range(300):
            for part in (f"{rank}" * 50, " ", f"{number}", "\\n"):
                os.write(1, part.encode())
        os.write(1, b"end without newline")
        """
    )
    lines = tfdist("run", "-n", "3", path).stdout.splitlines()
    for rank in range(3):
        mine = [line for line in lines if line.startswith(f"[{rank}] ")]
        expected = [f"[{rank}] {str(rank) * 50} {number}" for number in range(300)]
        assert mine == [*expected, f"[{rank}] end without newline"]
    assert len(lines) == 903


def test_a_progress_bar_shows_its_last_state(script):
    run = tfdist("run", "-n", "1", script("sys.stdout.write('\\r10%\\r50%\\r100%\\r\\n')"))
    assert run.stdout == "[0] 100%\n"


def test_cores_and_threads_are_divided_and_the_user_wins(script):
    path = script(
        """
        names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        print(*[os.environ[name] for name in names], sorted(os.sched_getaffinity(0)))
        """
    )
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("two cores are needed")
    run = tfdist("run", "-n", len(cores), path, TF_NUM_INTEROP_THREADS="7")
    assert sorted(run.stdout.splitlines()) == sorted(f"[{rank}] 1 1 7 [{core}]" for rank, core in enumerate(cores))
    run = tfdist("run", "-n", len(cores) + 1, path)
    assert all(line.endswith(f"1 1 2 {cores}") for line in run.stdout.splitlines())


def test_an_exception_ends_the_job_and_its_traceback_comes_last(script):
    path = script(
        """
        if rank == 1:
            time.sleep(0.3)
            try:
                {}["missing"]
            except KeyError as error:
                raise ValueError("no such column") from error
        print("other", file=sys.stderr)
        time.sleep(60)
        """
    )
    start = time.monotonic()
    run = tfdist("run", "-n", "3", path)
    assert time.monotonic() - start < 5
    assert run.returncode == 1
    head, _, traceback = run.stderr.rpartition("tfdist run: ")
    assert re.match(r"rank 1 of 3 failed with exit code 1 after \d\.\d s\. Its traceback:\nTraceback", traceback)
    assert "KeyError: 'missing'\n\nThe above exception was the direct cause" in traceback
    assert traceback.endswith("ValueError: no such column\n") and "other" not in traceback
    assert "[1] ValueError: no such column" in head


def test_the_exit_code_is_the_culprits(script):
    run = tfdist("run", "-n", "2", script("sys.exit('not today') if rank else time.sleep(60)"))
    assert run.returncode == 1 and run.stderr.endswith("Its last lines on stderr:\nnot today\n")
    assert tfdist("run", "-n", "2", script("os._exit(37) if rank else time.sleep(60)")).returncode == 37


def test_a_killed_worker_is_named_with_its_signal(script):
    path = script(
        """
        print(f"pid={os.getpid()}")
        time.sleep(60)
        """
    )
    with running("run", "-n", "2", "--no-recover", path, lines=2) as launcher:
        pids = {line[1]: pid for line, pid in zip(launcher.first_lines, pids_in(launcher.first_lines))}
        os.kill(pids["1"], signal.SIGKILL)
        start = time.monotonic()
        _, stderr = launcher.communicate(timeout=30)
        assert time.monotonic() - start < 5
        assert launcher.returncode == 128 + signal.SIGKILL
        assert re.search(
            r"rank 1 of 2 was killed by SIGKILL \(out of memory\? .*It wrote nothing to stderr\.\n$", stderr
        )
        assert_gone(pids.values())


def test_a_segmentation_fault_shows_where(script):
    path = script(
        """
        def deep():
            os.kill(os.getpid(), signal.SIGSEGV)
        deep() if rank else time.sleep(60)
        """
    )
    run = tfdist("run", "-n", "2", "--no-recover", path)
    assert run.returncode == 128 + signal.SIGSEGV
    last = run.stderr.rpartition("tfdist run: ")[2]
    assert "killed by SIGSEGV" in last and "in deep" in last


def test_a_consequence_is_not_blamed(script):
    """Rank 0 sees the loss and ends before rank 1, the cause, has ended."""
    path = script(
        """
        from tfdist.errors import WorkerLostError
        from tfdist.launch import report
        report.install()
        if rank == 0:
            time.sleep(0.3)
            raise WorkerLostError("all_reduce failed: lost rank 1", rank=1)
        try:
            raise ZeroDivisionError("the cause")
        finally:
            time.sleep(0.6)
        """
    )
    run = tfdist("run", "-n", "2", path)
    last = run.stderr.rpartition("tfdist run: ")[2]
    assert last.startswith("rank 1 of 2 failed with exit code 1"), run.stderr
    assert last.endswith("ZeroDivisionError: the cause\n")


def test_a_consequence_without_a_report_is_not_blamed_either(script):
    path = script(
        """
        class WorkerLostError(Exception): pass
        if rank == 0:
            raise WorkerLostError("lost rank 1")
        time.sleep(0.5)
        os._exit(9)
        """
    )
    run = tfdist("run", "-n", "2", path)
    assert run.returncode == 9 and "rank 1 of 2 failed with exit code 9" in run.stderr


def test_workers_that_ignore_sigterm_are_killed_in_time(script):
    path = script(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(f"pid={os.getpid()}", flush=True)
        time.sleep(0.3)
        sys.exit(3) if rank else time.sleep(60)
        """
    )
    start = time.monotonic()
    run = tfdist("run", "-n", "2", path)
    assert run.returncode == 3 and time.monotonic() - start < 30
    assert_gone(pids_in(run.stdout.splitlines()))


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_reach_everyone(script, number, code):
    path = script(
        PRINT_PIDS
        + """
    def handler(number, frame):
        print("got", signal.Signals(number).name, flush=True)
        sys.exit(0)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), handler)
    print("ready", flush=True)
    time.sleep(60)
    """
    )
    with running("run", "-n", "2", path, lines=4) as launcher:
        launcher.send_signal(number)
        start = time.monotonic()
        stdout, stderr = launcher.communicate(timeout=30)
        assert time.monotonic() - start < 5
        assert launcher.returncode == code
        assert stderr.endswith(f"tfdist run: stopped by {number.name}.\n")
        assert sorted(stdout.splitlines()) == [f"[{rank}] got {number.name}" for rank in range(2)]
        pids = pids_in(launcher.first_lines)
        assert len(pids) == 4
        assert_gone(pids)


def test_sigint_counts_where_a_shell_has_told_background_jobs_to_ignore_it(script):
    path = script("print('ready', flush=True)\ntime.sleep(60)")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with running("run", "-n", "2", path, lines=2) as launcher:
            launcher.send_signal(signal.SIGINT)
            start = time.monotonic()
            _, stderr = launcher.communicate(timeout=30)
            assert launcher.returncode == 130 and time.monotonic() - start < 2
            assert "KeyboardInterrupt" in stderr and stderr.endswith("tfdist run: stopped by SIGINT.\n")
    finally:
        signal.signal(signal.SIGINT, before)


def test_nohup_is_respected(script):
    path = script("print('ready', flush=True)\ntime.sleep(1)")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running("run", "-n", "2", path, lines=2) as launcher:
            launcher.send_signal(signal.SIGHUP)
            launcher.communicate(timeout=30)
            assert launcher.returncode == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_ends_workers_that_do_not_listen(script):
    path = script(
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print(f"pid={os.getpid()}", flush=True)
        time.sleep(60)
        """
    )
    with running("run", "-n", "2", path, lines=2) as launcher:
        launcher.send_signal(signal.SIGINT)
        time.sleep(0.5)
        start = time.monotonic()
        launcher.send_signal(signal.SIGINT)  # the second time at once
        launcher.communicate(timeout=30)
        assert time.monotonic() - start < 2 and launcher.returncode == 130
        assert_gone(pids_in(launcher.first_lines))


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_no_orphans_after_sigkill_of_the_launcher(script):
    path = script(PRINT_PIDS + "    time.sleep(120)\n")
    with running("run", "-n", "2", path, lines=2) as launcher:
        pids = pids_in(launcher.first_lines)
        assert len(pids) == 4 and all(map(is_running, pids))
        launcher.kill()
        assert_gone(pids, seconds=3.0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_no_orphans_after_sigkill_of_launcher_and_warden(script):
    path = script("print(f'pid={os.getpid()}', flush=True)\ntime.sleep(120)")
    with running("run", "-n", "2", path, lines=2) as launcher:
        pids = pids_in(launcher.first_lines)
        children = pathlib.Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        (warden,) = set(map(int, children)) - set(pids)
        os.kill(warden, signal.SIGKILL)
        assert launcher.poll() is None and all(map(is_running, pids))
        launcher.kill()
        assert_gone(pids, seconds=3.0)


def test_children_of_workers_end_with_the_job(script):
    path = script(PRINT_PIDS)
    start = time.monotonic()
    run = tfdist("run", "-n", "2", path)
    assert run.returncode == 0 and time.monotonic() - start < 10
    assert_gone(pids_in(run.stdout.splitlines()))


def test_a_closed_pipe_ends_the_job(script):
    path = script(
        """
        print(f"pid={os.getpid()}", flush=True)
        while True:
            print("line", flush=True)
            time.sleep(0.01)
        """
    )
    with running("run", "-n", "1", path, lines=1) as launcher:
        launcher.stdout.close()
        launcher.wait(timeout=20)
        assert launcher.returncode == 128 + signal.SIGPIPE
        assert_gone(pids_in(launcher.first_lines))


def test_nothing_is_left_in_the_file_system(script, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    run = tfdist("run", "-n", "2", script("import tfdist; print(tfdist.rank())"), HOME=str(home), TMPDIR=str(home),
                 XDG_RUNTIME_DIR=str(home), XDG_STATE_HOME=str(home), PYTHONDONTWRITEBYTECODE="1")  # fmt: skip
    assert run.returncode == 0 and list(home.iterdir()) == []


def test_two_nodes(script):
    """Two launchers on one host, the store on node 0."""
    path = script(
        """
        import socket, tfdist
        from tfdist.cluster.store import StoreClient
        cluster = tfdist.cluster.current()
        with StoreClient(cluster.store_address, cluster.secret, timeout=20.0) as store:
            store.set(f"from/{cluster.rank}", b"")
            for peer in range(4):
                store.get(f"from/{peer}", timeout=20.0)
            store.set(f"done/{cluster.rank}", b"")
            if rank == 0:
                for peer in range(4):
                    store.get(f"done/{peer}", timeout=20.0)
        print(cluster.local_rank, cluster.world_size, cluster.local_world_size)
        """
    )
    nodes = ("run", "-n", "2", "--nodes", "2", "--address", free_address())
    with running(*nodes, "--node-rank", "1", path, TFDIST_SECRET="of this test") as second:
        first = tfdist(*nodes, path, TFDIST_SECRET="of this test")
        stdout, stderr = second.communicate(timeout=30)
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + stderr
        assert sorted(first.stdout.splitlines()) == ["[0] 0 4 2", "[1] 1 4 2"]
        assert sorted(stdout.splitlines()) == ["[2] 0 4 2", "[3] 1 4 2"]
    run = tfdist(*nodes, path)
    assert run.returncode == 2 and "TFDIST_SECRET or TFDIST_SECRET_FILE is expected with --nodes" in run.stderr
