"""`tfdist run` goes on without a worker that is lost. The scripts play the parts of the library: no TensorFlow."""

import re
import signal

import pytest
from launching import PLAY, assert_gone, lines_with, pids_in, running, said_by, tfdist


@pytest.mark.parametrize(
    "death, manner",
    [("die()", r"was killed by SIGKILL \(out of memory\? See the kernel's log\)"),
     ("die(signal.SIGABRT)", "was killed by SIGABRT"), ("os._exit(75)", "was excluded"),
     ("leave_with_a_report()", "was excluded")],
)  # fmt: skip
def test_a_lost_worker_is_started_again_and_the_others_are_told(script, death, manner):
    path = script(
        PLAY
        + f"""
def leave_with_a_report():
    from tfdist.launch import report
    report.install()
    hook = sys.excepthook
    sys.excepthook = lambda *error: (hook(*error), os._exit(75))
    raise ValueError("out")

if rank == 1 and incarnation == 0:
    {death}
if rank == 0:
    print("told of", lost(1))
meet("all", [0, 1])
over()
"""
    )
    run = tfdist("run", "-n", "2", path)
    assert run.returncode == 0, run.stderr
    assert [line.partition(" pid")[0] for line in lines_with(run, "started")] == [
        "[0] 0 started 0", "[1] 1 started 0", "[1] 1 started 1"]  # fmt: skip
    assert lines_with(run, "told of") == ["[0] told of 0"]
    said = said_by(run)
    assert len(said) == 1 and re.fullmatch(
        rf"tfdist run: rank 1 {manner} after \d\.\d s; it is started again in 0\.1 s \(1 of 3\)\.", said[0]
    ), run.stderr


def test_a_worker_knows_that_its_job_recovers(script):
    path = script(
        "names = ('RECOVER', 'MIN_WORKERS', 'INCARNATION', 'WORLD_SIZE', 'INITIAL_WORKERS', 'LOCAL_WORLD_SIZE')\n"
        "print(*[os.environ['TFDIST_' + name] for name in names])"
    )
    assert lines_with(tfdist("run", "-n", "2", path), "]") == ["[0] 1 1 0 2 2 2", "[1] 1 1 0 2 2 2"]
    run = tfdist("run", "-n", "2", "--min-workers", "2", "--max-workers", "12", path)
    assert lines_with(run, "]") == ["[ 0] 1 2 0 12 2 12", "[ 1] 1 2 0 12 2 12"]
    for run in (tfdist("run", "-n", "2", "--no-recover", path), tfdist("run", "-n", "2", path, TFDIST_RECOVER="0")):
        assert lines_with(run, "]") == ["[0] 0 2 0 2 2 2", "[1] 0 2 0 2 2 2"]
    assert lines_with(tfdist("run", "-n", "1", path), "]") == ["[0] 0 1 0 1 1 1"]


def test_a_script_that_raises_ends_the_job_and_an_earlier_loss_is_not_blamed(script):
    path = script(
        PLAY
        + """
if rank == 1 and incarnation == 0:
    die()
meet("all", [0, 1])
if rank == 1:
    raise ValueError("of its own")
time.sleep(60)
"""
    )
    run = tfdist("run", "-n", "2", path)
    assert run.returncode == 1
    last = run.stderr.rpartition("tfdist run: ")[2]
    assert last.startswith("rank 1 of 2 failed with exit code 1") and last.endswith("ValueError: of its own\n")


def test_a_place_that_was_given_up_is_not_blamed_either(script):
    path = script(PLAY + "if rank == 1:\n    die()\nlost(1)\ntime.sleep(0.3)\nraise ValueError('of its own')")
    run = tfdist("run", "-n", "2", "--max-restarts", "0", path)
    assert run.returncode == 1 and run.stderr.endswith("ValueError: of its own\n"), run.stderr


def test_a_loss_is_blamed_for_those_who_could_not_go_on(script):
    path = script(
        PLAY
        + """
class WorkerLostError(Exception): pass
if rank == 1:
    die() if incarnation == 0 else time.sleep(60)
lost(1)
raise WorkerLostError("lost rank 1")
"""
    )
    run = tfdist("run", "-n", "2", path)
    assert run.returncode == 137
    assert run.stderr.rpartition("tfdist run: ")[2].startswith("rank 1 of 2 was killed by SIGKILL"), run.stderr


def test_a_crash_after_the_scripts_own_exception_is_no_loss(script):
    path = script(
        PLAY
        + """
from tfdist.launch import report
report.install()
if rank == 1:
    import atexit
    atexit.register(die, signal.SIGABRT)
    raise ValueError("of its own")
time.sleep(60)
"""
    )
    run = tfdist("run", "-n", "2", path)
    assert run.returncode == 128 + signal.SIGABRT and "started 1" not in run.stdout
    assert "ValueError: of its own" in run.stderr


def test_a_place_is_given_up_in_time_and_the_job_goes_on(script):
    path = script(
        PLAY
        + """
if rank == 1:
    die()
while lost(1) < 2:
    time.sleep(0.05)
time.sleep(0.3)
"""
    )
    run = tfdist("run", "-n", "2", "--max-restarts", "9", path)
    assert run.returncode == 0, run.stderr
    said = said_by(run)
    assert "started again in 0.1 s (1 of 9)" in said[0] and "started again in 0.2 s (2 of 9)" in said[1]
    assert said[2].endswith("it is not started again, for 3 times in a row it ended within 60 s of its start.")
    assert said[3] == "tfdist run: ended well without rank 1, lost for good." and len(said) == 4


def test_a_life_that_took_part_is_no_failed_start(script):
    path = script(
        PLAY
        + """
if rank == 1 and incarnation < 5:
    join()
    die()
store.get("all") if rank == 0 else store.set("all", b"")
over()
"""
    )
    run = tfdist("run", "-n", "2", "--max-restarts", "9", path)
    assert run.returncode == 0, run.stderr
    assert [line.rpartition(" in ")[2] for line in said_by(run)] == [
        f"0.1 s ({number} of 9)." for number in range(1, 6)
    ]


def test_max_restarts_0_goes_on_without_it(script):
    path = script(PLAY + "if rank == 1:\n    die()\nlost(1)\ntime.sleep(0.2)")
    run = tfdist("run", "-n", "2", "--max-restarts", "0", path)
    assert run.returncode == 0
    assert said_by(run)[0].endswith("; it is not started again, for --max-restarts is 0.")
    assert len(lines_with(run, "started")) == 2


def test_too_few_workers_end_the_job(script):
    path = script(PLAY + "if rank == 1:\n    die()\ntime.sleep(60)")
    run = tfdist("run", "-n", "3", "--max-restarts", "0", "--min-workers", "3", path)
    assert run.returncode == 137
    assert re.match(
        r"rank 1 of 3 was killed by SIGKILL .* 2 workers left, fewer than --min-workers 3: the job ends\.",
        run.stderr.rpartition("tfdist run: ")[2],
    )
    assert_gone(pids_in(run.stdout.splitlines()))


def test_nobody_left_with_the_state_ends_the_job(script):
    """Rank 1 was started again, but had not joined when rank 0 was lost."""
    path = script(
        PLAY
        + """
if incarnation == 0:
    meet("all", [0, 1])
    die() if rank == 1 else store.get("again")
    die()
store.set("again", b"")
time.sleep(60)
"""
    )
    run = tfdist("run", "-n", "2", path)
    assert run.returncode == 137
    assert "No worker is left that has the state of the training" in run.stderr
    assert run.stderr.rpartition("tfdist run: ")[2].startswith("rank 0 of 2 was killed by SIGKILL"), run.stderr
    assert_gone(pids_in(run.stdout.splitlines()))


def test_a_worker_that_was_excluded_and_stands_still_is_ended_and_started_again(script):
    path = script(
        PLAY
        + """
if rank == 1 and incarnation == 0:
    store.set("here", b"")
    die(signal.SIGSTOP)
if rank == 0:
    store.get("here")
    store.set("elastic/excluded/1", b"0")
    print("told of", lost(1))
meet("all", [0, 1])
over()
"""
    )
    run = tfdist("run", "-n", "2", path)
    assert run.returncode == 0, run.stderr
    assert lines_with(run, "told of") == ["[0] told of 0"] and "1 started 1" in run.stdout
    assert said_by(run)[0].startswith("tfdist run: rank 1 was excluded and stood still after ")
    assert_gone(pids_in(run.stdout.splitlines()))


def test_the_end_of_the_job_ends_those_who_came_too_late(script):
    path = script(
        PLAY
        + """
def end(*_):
    print("asked to end", flush=True)
    with StoreClient(store.address, os.environ["TFDIST_SECRET"].encode()) as own:
        own.set("ends", b"")
    os._exit(9)
signal.signal(signal.SIGTERM, end)
if rank == 1:
    die() if incarnation == 0 else (store.set("waits", b""), time.sleep(60))
store.get("waits")
over()
store.get("ends")
"""
    )
    run = tfdist("run", "-n", "2", path)
    assert run.returncode == 0, run.stderr
    assert lines_with(run, "asked") == ["[1] asked to end"]
    assert_gone(pids_in(run.stdout.splitlines()))


def test_nobody_is_started_again_after_the_end_of_the_job(script):
    path = script(
        PLAY
        + """
if rank == 0:
    over()
    store.set("told", b"")
    sys.exit(0)
store.get("told")
die(signal.SIGSEGV)
"""
    )
    run = tfdist("run", "-n", "2", path)
    assert run.returncode == 0, run.stderr
    assert "started 1" not in run.stdout
    assert [line.partition(" after ")[0] for line in said_by(run)] == [
        "tfdist run: rank 1 was killed by SIGSEGV when the job had ended.",
        "tfdist run: ended well without rank 1, lost for good.",
    ]


def test_what_a_lost_worker_had_started_is_ended(script):
    path = script(
        PLAY
        + """
if rank == 1 and incarnation == 0:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    print(f"child pid={child.pid}", flush=True)
    die()
print("ready", flush=True)
time.sleep(60)
"""
    )
    with running("run", "-n", "2", path, lines=6) as launcher:
        assert_gone(pids_in(line for line in launcher.first_lines if "child" in line))
        launcher.send_signal(signal.SIGTERM)
        stdout, stderr = launcher.communicate(timeout=30)
        assert launcher.returncode == 143, stderr
        assert_gone(pids_in([*launcher.first_lines, *stdout.splitlines()]))


def test_a_stop_while_a_restart_is_due_ends_the_job(script):
    path = script(PLAY + "if rank == 1:\n    die()\nprint('ready', flush=True)\ntime.sleep(60)")
    with running("run", "-n", "2", path, lines=3) as launcher:
        launcher.send_signal(signal.SIGINT)
        launcher.communicate(timeout=30)
        assert launcher.returncode == 130
        assert_gone(pids_in(launcher.first_lines))


def test_injected_faults_happen_to_the_first_process_of_a_place(script):
    path = script(
        PLAY
        + """
from tfdist.testing import faults
for step in range(3):
    print(f"{rank} {incarnation} step {step}", flush=True)
    faults.reach("step", step)
meet("all", [0, 1])
over()
"""
    )
    run = tfdist("run", "-n", "2", "--inject", "kill:rank=1,step=1", path)
    assert run.returncode == 0, run.stderr
    steps = ["0 0 step 0", "0 0 step 1", "0 0 step 2", "1 0 step 0", "1 0 step 1"]
    steps += ["1 1 step 0", "1 1 step 1", "1 1 step 2"]
    assert [line.partition("] ")[2] for line in lines_with(run, "step")] == steps
    assert "[1] " in run.stderr and "tfdist.testing: kill:rank=1,step=1" in run.stderr


def test_restarts_leave_nothing_behind_in_the_launcher(script):
    path = script(
        PLAY
        + """
if rank == 1:
    join()
    store.set(f"life/{incarnation}", b"")
    store.get("end") if incarnation == 6 else store.get(f"go/{incarnation}")
    die() if incarnation < 6 else sys.exit()

def held():
    return {what: len(os.listdir(f"/proc/{os.getppid()}/{what}")) for what in ("fd", "task")}

for life in range(7):
    store.get(f"life/{life}")
    deadline = time.monotonic() + 5
    while life == 6 and held() != first and time.monotonic() < deadline:
        time.sleep(0.02)  # the threads of the last one that was lost
    if life in (0, 6):
        first = first if life else held()
        print("held", held() == first, first, held(), flush=True)
    store.set(f"go/{life}", b"")
over()
store.set("end", b"")
"""
    )
    run = tfdist("run", "-n", "2", "--max-restarts", "9", path)
    assert run.returncode == 0, run.stderr
    assert [line.split()[2] for line in lines_with(run, "held")] == ["True", "True"], run.stdout
