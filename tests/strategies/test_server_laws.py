"""What must hold on every worker of a strategy with parameter servers."""

import numpy as np
import pytest

from tests.multiprocess import run_workers
from tests.strategies.test_equivalence import flat

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(400)]

_LAWS = ["training", "statistics", "saving", "stopping", "table", "hosted", "loop", "differing_models", "not_finite"]


@pytest.fixture(
    scope="module",
    params=[("async", 2, "shm", 1), ("bounded", 3, "tcp", 0)],
    ids=["async-2-shm-prefetch", "bounded-3-tcp"],
)
def ranks(request, tmp_path_factory):
    name, num_workers, transport, prefetch = request.param
    arguments = dict(names=_LAWS, folder=str(tmp_path_factory.mktemp("laws")), name=name, num_servers=num_workers - 1)
    arguments["prefetch"] = prefetch
    environment = {"TFDIST_TRANSPORT": transport}
    run = "tests.strategies.server_laws:checks"
    return run_workers(num_workers, run, timeout=300, environment=environment, **arguments)


@pytest.mark.parametrize("law", _LAWS)
def test_law_runs_on_every_rank(law, ranks):
    for result in ranks:
        assert f"{law}: error" not in result, result[f"{law}: error"]


def test_each_row_is_trained_on_once_an_epoch(ranks):
    orders = []
    for epoch in range(3):
        seen = [row for result in ranks for row in result["training: local rows"][epoch]]
        assert sorted(seen) == list(range(61))
        orders.append(seen)
    assert orders[0] != orders[1]


def test_all_updates_are_applied_when_fit_returns(ranks):
    for result in ranks:
        assert result["training: iterations"] == 3 * 16  # 61 rows in batches of 4
        assert result["training: replicas"] == 1
    assert sum(result["training: local pushes"] for result in ranks) == 3 * 16


def test_workers_hold_the_same_in_the_end(ranks):
    for key in ranks[0]:
        if ": local " not in key and "error" not in key:
            for result in ranks[1:]:
                assert np.array_equal(flat(result[key]), flat(ranks[0][key])), key


def test_logs_are_those_of_all_workers(ranks):
    loss = ranks[0]["training: history"][0]
    assert len(loss) == 3 and all(np.isfinite(loss))
    assert len(ranks[0]["training: predicted"]) == 61


def test_moving_statistics_are_averaged(ranks):
    assert np.allclose(ranks[0]["statistics: mean"], 5.0, atol=0.5)


def test_files_hold_the_global_state(ranks):
    for result in ranks:
        assert result["saving: first"] == 0.0
        assert result["saving: moved"]
        assert result["saving: iterations"] == [16, 48]
        assert result["saving: served"] < 1e-6


def test_a_stop_stops_all(ranks):
    for result in ranks:
        assert result["stopping: epochs"] == [2, 2]


def test_embeddings_travel_as_touched_rows(ranks):
    for result in ranks:
        assert result["table: untouched"] and result["table: touched"]
        # The parameters and state go up and come down once a fit and an epoch; a step moves its rows only.
        assert result["table: moved bytes"] < (1 + 4 * len(ranks)) * result["table: table bytes"]


def test_optimizers_without_a_rule_are_hosted(ranks):
    for name in ("Muon", "Halving"):
        loss, iterations = ranks[0][f"hosted: {name}"]
        assert iterations == 48 and loss[-1] < loss[0]


def test_own_loops_come_together(ranks):
    assert sum(result["loop: local batches"] for result in ranks) == 32
    assert ranks[0]["loop: iterations"] == 32


def test_different_models_are_named(ranks):
    messages = [result["differing_models: local message"] for result in ranks]
    assert all("the update rule" in message and "0.9" in message and "0.5" in message for message in messages)


def test_a_gradient_that_is_not_finite_is_refused(ranks):
    for result in ranks:
        assert "NaN or infinity in the gradient of" in result["not_finite: local message"]
        assert result["not_finite: same"]


@pytest.fixture(scope="module")
def with_backup(tmp_path_factory):
    arguments = dict(names=["training", "stopping"], folder=str(tmp_path_factory.mktemp("laws")))
    run = "tests.strategies.server_laws:checks"
    return run_workers(3, run, timeout=300, name="sync", backup_workers=1, **arguments)


def test_with_a_backup_worker_late_gradients_are_dropped_and_all_end_equal(with_backup):
    steps = {result["training: iterations"] for result in with_backup}
    pushes = sum(result["training: local pushes"] for result in with_backup)
    assert pushes == 3 * 31  # batches of two rows
    assert len(steps) == 1 and pushes / 3 <= max(steps) < pushes  # an update takes two, but for the last of an epoch
    for epoch in range(3):
        assert sorted(r for result in with_backup for r in result["training: local rows"][epoch]) == list(range(61))
    for result in with_backup:
        assert result["training: replicas"] == 3
        assert np.array_equal(flat(result["training: state"]), flat(with_backup[0]["training: state"]))
        assert result["stopping: epochs"] == [2, 2]
