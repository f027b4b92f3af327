"""Jobs that go on with other numbers of workers and under other strategies."""

import numpy as np
import pytest

from tests.multiprocess import run_workers

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(400)]


def phases(directory, *jobs):
    """Runs `(num_workers, strategy, until)` one after the other; returns the results of all workers."""
    return [
        run_workers(num, "tests.checkpoint.cases:phase", directory=str(directory), name=name, until=until)
        for num, name, until in jobs
    ]


def continues(results):
    """Each job begins with the loss with which the one before it ended, on all workers."""
    for before, after in zip(results, results[1:]):
        for worker in after:
            assert np.isclose(worker["begin"], before[0]["end"], rtol=1e-12)
    for job in results:
        assert job[0]["end"] < 0.98 * job[0]["begin"]


def test_four_two_three_workers_as_one_process(tmp_path):
    (straight,) = run_workers(
        1, "tests.checkpoint.cases:phase", directory=str(tmp_path / "straight"), name=None, until=None
    )
    results = phases(tmp_path / "resumed", (4, "ring", 1), (2, "sync", 3), (3, "ring", None))
    assert [job[0]["epochs"] for job in results] == [[0], [2], [4, 5]]
    continues(results)
    for worker in results[-1]:
        assert np.array_equal(worker["state"], results[-1][0]["state"])
        assert np.allclose(worker["state"], straight["state"], rtol=0, atol=1e-12)


def test_ring_then_asynchronous_then_ring(tmp_path):
    results = phases(tmp_path, (2, "ring", 1), (2, "async", 3), (2, "ring", None))
    assert [job[0]["epochs"] for job in results] == [[0], [2], [4, 5]]
    continues(results)
