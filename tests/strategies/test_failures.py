"""Workers that disagree or disappear end with an error that says so, on every rank and in time."""

import pytest

from tests.multiprocess import run_workers

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(200)]


def test_a_different_model_is_a_mismatch():
    for result in run_workers(2, "tests.strategies.failures:different_model"):
        assert result["kind"] == "MismatchError"
        assert "kernel" in result["message"] and "[5,8]" in result["message"] and "[5,9]" in result["message"]
        assert result["seconds"] < 20


def test_a_skipped_step_is_a_mismatch():
    for result in run_workers(2, "tests.strategies.failures:skipped_step"):
        assert "step 2" in result["message"] and "step 3" in result["message"], result
        assert result["seconds"] < 30


def test_a_worker_that_disappears_is_named():
    outcomes = run_workers(2, "tests.strategies.failures:raises_in_a_callback", check=False)
    assert outcomes[1][0] == 3
    result = outcomes[0][2]
    assert result["kind"] == "WorkerLostError", result
    assert "rank 1" in result["message"]
    assert result["seconds"] < 30
