"""What must hold on every worker beyond equality with one process."""

import numpy as np
import pytest

from tests.multiprocess import run_workers

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(400)]

_LAWS = [
    "shuffled_rows",
    "dropout",
    "batch_normalization",
    "overflow_on_one_rank",
    "saving",
    "restored",
    "use_survives_clear_session",
    "callbacks",
    "refusals",
    "two_threads",
    "differing_weights",
    "unknown_length",
    "static_single_rows",
    "differing_arguments",
    "ways_to_travel",
]


@pytest.fixture(scope="module", params=[(2, "shm", "1"), (3, "tcp", "0")], ids=["2-shm-elastic", "3-tcp"])
def ranks(request, tmp_path_factory):
    num_workers, transport, recover = request.param
    arguments = dict(names=_LAWS, folder=str(tmp_path_factory.mktemp("laws")))
    environment = {"TFDIST_TRANSPORT": transport, "TFDIST_RECOVER": recover}
    return run_workers(num_workers, "tests.strategies.laws:checks", timeout=300, environment=environment, **arguments)


@pytest.mark.parametrize("law", _LAWS)
def test_law_runs_on_every_rank(law, ranks):
    for result in ranks:
        assert f"{law}: error" not in result, result[f"{law}: error"]


@pytest.mark.parametrize("kind", ["arrays", "batch", "dataset", "py_dataset"])
def test_each_row_is_seen_once_an_epoch(kind, ranks):
    orders = []
    for epoch in range(3):
        seen = [row for result in ranks for row in result[f"shuffled_rows: {kind}"][epoch]]
        assert sorted(seen) == list(range(37))
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2]


def test_dropout_differs_between_ranks_and_repeats(ranks):
    for draw in range(4):
        masks = [result["dropout: local first"][draw] for result in ranks]
        assert all(masks[0] != mask for mask in masks[1:])
    for result in ranks:
        assert result["dropout: local first"][0] == result["dropout: local again"][0]
        assert result["dropout: local first"][0] != result["dropout: local first"][2]


def test_moving_statistics_are_averaged_over_rows(ranks):
    for result in ranks:
        assert result["batch_normalization: mean"] < 1e-12
        assert result["batch_normalization: variance"] < 1e-12


def test_overflow_on_one_rank_skips_the_step_everywhere(ranks):
    for result in ranks:
        assert result["overflow_on_one_rank: scale"] == 512.0
        assert np.array_equal(result["overflow_on_one_rank: kernel"], np.ones((2, 1)))
        assert result["overflow_on_one_rank: iterations"] == 1
        assert np.allclose(result["overflow_on_one_rank: later kernel"], 0.8, atol=1e-3)


def test_files_are_written_once_and_can_be_read_at_once(ranks):
    for rank, result in enumerate(ranks):
        assert result["saving: equal"]
        assert result["saving: served"] < 1e-12
        assert result["saving: again"] == ranks[0]["saving: again"]
        assert result["saving: local csv"] == (rank == 0)
    written = ["1.keras", "2.keras", "3.keras", "by the chief.keras", "exported", "log-0.csv", "model.keras"]
    assert ranks[0]["saving: local files"] == [*written, "model.weights.h5"]


def test_backup_and_restore_goes_on_where_training_stopped(ranks):
    for result in ranks:
        assert result["restored: epochs"] == [2, 3]
        assert result["restored: difference"] == 0.0


def test_use_survives_clear_session(ranks):
    assert all(result["use_survives_clear_session: kept"] for result in ranks)


def test_callbacks(ranks):
    mean = sum(range(len(ranks))) / len(ranks)
    for result in ranks:
        assert np.allclose(result["callbacks: mine"], mean)
        assert np.allclose(result["callbacks: rates"][0], 0.1)
        assert np.allclose(result["callbacks: rates"][8:], 0.1 * len(ranks))
        for key in result:
            if key.startswith("callbacks: weight"):
                assert np.array_equal(result[key], ranks[0][key])


def test_refusals_say_what_to_do(ranks):
    for result in ranks:
        jit, outside = result["refusals: messages"]
        assert "jit_compile=True. Compile the model with jit_compile=False" in jit
        assert "call strategy.run" in outside


def test_two_threads_train_two_models(ranks):
    for result in ranks:
        assert result["two_threads: weights"] == ranks[0]["two_threads: weights"]


def test_differing_weights_are_noticed(ranks):
    for result in ranks:
        message = result["differing_weights: local message"]
        assert "weights of variable 0" in message and "rank 1" in message and "BroadcastInitialState" in message


def test_data_of_unknown_length_ends_after_the_same_step(ranks):
    for result in ranks:
        assert result["unknown_length: iterations"] == [10, 20, 30, 40, 50]
        for key in result:
            if key.startswith("unknown_length: weight"):
                assert np.array_equal(result[key], ranks[0][key])


def test_batches_of_one_row(ranks):
    for result in ranks:
        assert result["static_single_rows: rows"] == 6
        assert np.isfinite(result["static_single_rows: loss"]).all()
        assert result["static_single_rows: loss"] == ranks[0]["static_single_rows: loss"]


def test_differing_arguments_are_named(ranks):
    for result in ranks:
        epochs, batch_size, rows = result["differing_arguments: local messages"]
        assert "model.fit" in epochs and "epochs=1 on rank 0, epochs=2 on rank 1" in epochs
        assert "batch_size=8 on rank 0, batch_size=9 on rank 1" in batch_size
        assert "rows=37 on rank 0, rows=36 on rank 1" in rows


def test_all_ways_to_travel_train_alike(ranks):
    moved = ranks[0]["ways_to_travel: moved"]
    for result in ranks:
        assert result["ways_to_travel: moved"] == moved  # bit-equal on all ranks
    exact = [np.array(values) for way, values in moved.items() if not way.startswith("float32")]
    for other in exact[1:]:
        assert np.abs(other - exact[0]).max() < 1e-12 * np.abs(exact[0]).max()
    whole = np.array(moved["float32 as it is"])
    for way, bits in (("as bfloat16", 8), ("as float16", 11)):
        error = np.abs(np.array(moved[f"float32 {way}"]) - whole).max() / np.abs(whole).max()
        assert 0 < error < 2.0**-bits * 4, way


def test_what_cannot_travel_is_refused(ranks):
    wire_dtype, algorithm, bucket_bytes = ranks[0]["ways_to_travel: messages"]
    assert "wire_dtype is expected to be None" in wire_dtype and "'int8'" in wire_dtype
    assert "algorithm is expected to be one of" in algorithm and "'star'" in algorithm
    assert "bucket_bytes is expected to be > 0. Received: bucket_bytes=0" in bucket_bytes
