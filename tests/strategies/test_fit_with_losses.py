"""`fit` under `tfdist run` while workers are killed: nobody notices but the clock, and nothing is lost or done twice."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.multiprocess import run_workers

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SCRIPT = pathlib.Path(__file__).with_name("elastic_fit.py")
_LOST_AT = 27  # in the second epoch


@pytest.fixture
def train(tmp_path):
    """Runs the script; returns the results of the workers that came to the end, by rank, and what was said."""

    def run(num_workers, strategy, *options, **variables):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TFDIST_", "OMP_", "TF_"))}
        environment = {**kept, "PYTHONPATH": str(_ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "",
                       **variables}  # fmt: skip
        command = [sys.executable, "-m", "tfdist", "run", "-n", str(num_workers), *options, str(_SCRIPT), str(tmp_path)]
        job = subprocess.run(
            [*command, strategy], env=environment, capture_output=True, text=True, timeout=280, cwd=tmp_path
        )
        assert job.returncode == 0, job.stdout[-4000:] + job.stderr[-8000:]
        found = {}
        for path in tmp_path.glob("rank-*.npz"):
            with np.load(path) as arrays:
                values = {name: arrays[name] for name in arrays.files}
            found[int(path.stem.split("-")[1])] = {**values, **json.loads(path.with_suffix(".json").read_text())}
        return found, job.stdout + job.stderr

    return run


def _are_equal(found):
    first, *others = found.values()
    for name in (name for name, value in first.items() if isinstance(value, np.ndarray)):
        assert all(np.array_equal(first[name], other[name]) for other in others), name


@pytest.mark.parametrize("phase", ["step", "reducing"])
def test_survivors_train_what_one_process_trains_without_the_rows_of_the_lost_one(train, phase):
    found, said = train(3, "ring", "--max-restarts", "0", "--inject", f"kill:rank=0,step={_LOST_AT},phase={phase}")
    assert sorted(found) == [1, 2], said
    _are_equal(found)
    (expected,) = run_workers(
        1, "tests.strategies.elastic_fit:reference", lost_at=_LOST_AT, slot=0, count=3, timeout=120
    )
    for name, value in expected.items():
        assert np.abs(found[1][name] - value).max() <= 1e-9, name
    assert [found[rank]["chief"] for rank in (1, 2)] == [True, False]
    assert len(found[1]["history"]["val_loss"]) == 4 and found[1]["history"] == found[2]["history"]


def test_a_lost_worker_comes_back_and_ends_as_the_others_do(train, tmp_path):
    found, said = train(2, "ring", "--inject", f"kill:rank=0,step={_LOST_AT},phase=committed", SLOW="1.5")
    assert sorted(found) == [0, 1] and found[0]["members"] == found[1]["members"] == [1, 0], said
    _are_equal(found)
    assert found[0]["history"] == found[1]["history"] and len(found[0]["history"]["loss"]) == 4
    assert [found[rank]["rank"] for rank in (0, 1)] == [0, 1] and found[0]["count"] == found[1]["count"]
    assert {path.name for path in tmp_path.glob("*.keras")} == {f"{epoch}.keras" for epoch in (1, 2, 3, 4)}


@pytest.mark.parametrize("strategy", ["sync", "async"])
def test_workers_of_servers_go_on_without_a_lost_one(train, strategy):
    found, said = train(3, strategy, "--max-restarts", "0", "--inject", f"kill:rank=0,step={_LOST_AT}")
    assert sorted(found) == [1, 2], said
    _are_equal({rank: {n: v for n, v in values.items() if n.startswith("weight")} for rank, values in found.items()})
    losses = found[1]["history"]["loss"]
    assert losses[-1] < 0.6 * losses[0]


def test_too_few_workers_end_the_job_with_a_clear_text(train):
    with pytest.raises(AssertionError, match="1 workers are left of at least 2|fewer than --min-workers"):
        train(2, "ring", "--min-workers", "2", "--max-restarts", "0", "--inject", f"kill:rank=1,step={_LOST_AT}")
