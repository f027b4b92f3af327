import pytest
import tensorflow as tf

from tfdist.data import permutation, pipeline, randomness, sharding


@pytest.fixture(params=[1, 2])
def cores(request, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(request.param)))
    return request.param


def runs_ahead(dataset):
    """Whether some part of `dataset` has threads of its own."""
    names = [type(part).__name__ for part in randomness.parts(dataset)]
    return any("Prefetch" in name or "Parallel" in name for name in names)


def test_a_pipeline_runs_ahead_only_where_there_is_a_core_for_it(cores):
    assert pipeline.has_one_core() == (cores == 1)
    arrays = permutation.batches(
        (tf.range(12),), num_rows=12, batch_size=4, shuffle=False, seed=[0], rank=1, world_size=2
    )
    batches = sharding.share_rows(tf.data.Dataset.range(12).batch(4), 1, 2)
    assert runs_ahead(arrays) == runs_ahead(batches) == (cores > 1)
    for dataset in (arrays.map(lambda x: x), batches):
        assert [batch.numpy().tolist() for batch in dataset] == [[2, 3], [6, 7], [10, 11]]
        assert dataset.options().deterministic
