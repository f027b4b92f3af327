"""`fit` goes on while the parameter servers are killed: no exception, no step lost, none twice."""

import numpy as np
import pytest

from tests.multiprocess import run_workers

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(200)]
_RUN = "tests.strategies.server_kills:fits"


@pytest.mark.parametrize("optimizer", ["adam", "lamb"])  # a native rule, and one that Keras applies on the server
def test_one_worker_trains_on(optimizer):
    (result,) = run_workers(1, _RUN, optimizer=optimizer)
    assert (result["iterations"], result["left"]) == (24, 0)
    assert result["loss"][-1] < result["loss"][0] and np.isfinite(result["loss"]).all()


def test_with_replicas_it_is_the_run_without_kills():
    options = {"num_servers": 2, "server_replicas": 2}
    (killed,) = run_workers(1, _RUN, kills=[5, 13], **options)
    (whole,) = run_workers(1, _RUN, kills=[], **options)
    assert killed["iterations"] == whole["iterations"] == 24
    np.testing.assert_array_equal(killed["weights"], whole["weights"])


@pytest.mark.parametrize("strategy", ["AsyncSGDStrategy", "SyncSGDStrategy"])
def test_two_workers_train_on(strategy):
    results = run_workers(2, _RUN, strategy=strategy, environment={"TFDIST_RECOVER": "1"})
    assert [result["iterations"] for result in results] == [24, 24]
    np.testing.assert_array_equal(results[0]["weights"], results[1]["weights"])
