"""`tfdist run` goes on without a worker that is lost. The scripts play the parts of the library: no TensorFlow."""

import re
import signal
import time

import pytest
from launching import assert_gone, pids_in, running, tfdist

# What the library does: `lost` waits for the notice of a loss, `join` and `over` tell the launcher.
PLAY = """
from tfdist.cluster.store import StoreClient

incarnation = int(os.environ["TFDIST_INCARNATION"])
store = StoreClient(os.environ["TFDIST_STORE"], os.environ["TFDIST_SECRET"].encode(), timeout=20.0)

def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)

def meet(name, ranks):
    store.set(f"{name}/{rank}", b"")
    for other in ranks:
        store.get(f"{name}/{other}")

def lost(other):
    return int(store.get(f"elastic/dead/{other}"))

def join():
    store.set(f"elastic/joined/{rank}", str(incarnation).encode())

def over():
    store.set("elastic/over", b"")

print(f"{rank} started {incarnation} pid={os.getpid()}", flush=True)
"""


def _lines(run, word):
    return sorted(line for line in run.stdout.splitlines() if word in line)


def _said(run):
    return [line for line in run.stderr.splitlines() if line.startswith("tfdist run: ")]


@pytest.mark.parametrize(
    "death, manner",
    [("die()", r"was killed by SIGKILL \(out of memory\? See the kernel's log\)"),
     ("die(signal.SIGABRT)", "was killed by SIGABRT"), ("os._exit(75)", "was excluded")],
)  # fmt: skip
def test_a_lost_worker_is_started_again_and_the_others_are_told(script, death, manner):
    path = script(
        PLAY
        + f"""
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
    assert [line.partition(" pid")[0] for line in _lines(run, "started")] == [
        "[0] 0 started 0", "[1] 1 started 0", "[1] 1 started 1"]  # fmt: skip
    assert _lines(run, "told of") == ["[0] told of 0"]
    said = _said(run)
    assert len(said) == 1 and re.fullmatch(
        rf"tfdist run: rank 1 {manner} after \d\.\d s; it is started again in 0\.1 s \(1 of 3\)\.", said[0]
    ), run.stderr


def test_a_worker_knows_that_its_job_recovers(script):
    path = script(
        "names = ('RECOVER', 'MIN_WORKERS', 'INCARNATION', 'WORLD_SIZE', 'INITIAL_WORKERS', 'LOCAL_WORLD_SIZE')\n"
        "print(*[os.environ['TFDIST_' + name] for name in names])"
    )
    assert _lines(tfdist("run", "-n", "2", path), "]") == ["[0] 1 1 0 2 2 2", "[1] 1 1 0 2 2 2"]
    run = tfdist("run", "-n", "2", "--min-workers", "2", "--max-workers", "12", path)
    assert _lines(run, "]") == ["[ 0] 1 2 0 12 2 12", "[ 1] 1 2 0 12 2 12"]
    for run in (tfdist("run", "-n", "2", "--no-recover", path), tfdist("run", "-n", "2", path, TFDIST_RECOVER="0")):
        assert _lines(run, "]") == ["[0] 0 2 0 2 2 2", "[1] 0 2 0 2 2 2"]
    assert _lines(tfdist("run", "-n", "1", path), "]") == ["[0] 0 1 0 1 1 1"]


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
    said = _said(run)
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
    assert [line.rpartition(" in ")[2] for line in _said(run)] == [f"0.1 s ({number} of 9)." for number in range(1, 6)]


def test_max_restarts_0_goes_on_without_it(script):
    path = script(PLAY + "if rank == 1:\n    die()\nlost(1)\ntime.sleep(0.2)")
    run = tfdist("run", "-n", "2", "--max-restarts", "0", path)
    assert run.returncode == 0
    assert _said(run)[0].endswith("; it is not started again, for --max-restarts is 0.")
    assert len(_lines(run, "started")) == 2


def test_too_few_workers_end_the_job(script):
    path = script(PLAY + "if rank == 1:\n    die()\ntime.sleep(60)")
    start = time.monotonic()
    run = tfdist("run", "-n", "3", "--max-restarts", "0", "--min-workers", "3", path)
    assert run.returncode == 137 and time.monotonic() - start < 10
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


def test_the_end_of_the_job_ends_those_who_came_too_late(script):
    path = script(
        PLAY
        + """
signal.signal(signal.SIGTERM, lambda *_: (print("asked to end", flush=True), os._exit(9)))
if rank == 1:
    die() if incarnation == 0 else (store.set("waits", b""), time.sleep(60))
store.get("waits")
over()
"""
    )
    start = time.monotonic()
    run = tfdist("run", "-n", "2", path)
    assert run.returncode == 0 and time.monotonic() - start < 10, run.stderr
    assert _lines(run, "asked") == ["[1] asked to end"]
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
    assert [line.partition(" after ")[0] for line in _said(run)] == [
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
    assert [line.partition("] ")[2] for line in _lines(run, "step")] == steps
    assert "[1] " in run.stderr and "tfdist.testing: kill:rank=1,step=1" in run.stderr
