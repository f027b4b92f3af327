import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from tfdist import errors
from tfdist.data import one_shot, randomness, reusable, sharding, uneven


class Workers:
    """Stands in for the strategies of several workers of which only one speaks."""

    def __init__(self, rank=0, world_size=2, others_have_data=False):
        self.rank = rank
        self.world_size = world_size
        self.others_have_data = others_have_data
        self.share_of_data = rank, world_size

    def agree(self, label, values):
        self.agreed = values

    def is_common(self, value):
        return not self.others_have_data

    def all_reduce(self, tensors, op, name):
        assert op == "max"
        return [tf.maximum(tensor, int(self.others_have_data)) for tensor in tensors]


@pytest.mark.parametrize("world_size", [2, 3])
def test_rows_of_all_workers_are_the_batch(world_size):
    x = np.arange(14).reshape(7, 2)
    ragged = tf.RaggedTensor.from_row_lengths(np.arange(10), [1, 2, 0, 3, 1, 2, 1])
    sparse = tf.sparse.from_dense(np.diag(np.arange(1, 8)))
    batch = {"x": x, "ragged": ragged, "sparse": sparse, "scalar": np.float32(3)}
    parts = [
        list(sharding.share_rows(tf.data.Dataset.from_tensors(batch), r, world_size))[0] for r in range(world_size)
    ]
    assert np.array_equal(np.concatenate([part["x"] for part in parts]), x)
    assert tf.concat([part["ragged"] for part in parts], 0).to_list() == ragged.to_list()
    dense = np.concatenate([tf.sparse.to_dense(part["sparse"]) for part in parts])
    assert np.array_equal(dense, np.diag(np.arange(1, 8)))
    assert all(part["scalar"] == 3 for part in parts)


def test_static_shapes_stay_static():
    dataset = sharding.share_rows(tf.data.Dataset.from_tensors(np.zeros((5, 2))), 0, 2)
    assert dataset.element_spec.shape == (3, 2)


def test_distributing_twice_cuts_once():
    strategy = Workers()
    once = sharding.distribute(strategy, tf.data.Dataset.range(8).batch(4))
    assert sharding.distribute(strategy, once) is once
    assert [batch.numpy().tolist() for batch in once] == [[0, 1], [4, 5]]


def test_one_worker_keeps_its_dataset():
    dataset = tf.data.Dataset.range(3)
    assert sharding.distribute(Workers(world_size=1), dataset) is dataset


def test_own_data_ends_when_everybodys_has_ended():
    own = tf.data.Dataset.from_tensor_slices(np.ones((3, 2))).batch(2)
    assert [len(batch) for batch in uneven.InStep(Workers(), own)] == [2, 1]
    iterator = iter(uneven.InStep(Workers(others_have_data=True), own))
    assert [len(next(iterator)) for _ in range(4)] == [2, 1, 0, 0]
    with pytest.raises(tf.errors.OutOfRangeError):
        list(uneven.InStep(Workers(), own).as_trainer_wants())


@pytest.mark.parametrize("dtype", [tf.float32, tf.string])
def test_batches_without_rows_have_the_right_shape(dtype):
    values = tf.fill([1, 3], "a") if dtype == tf.string else tf.zeros([1, 3], dtype)
    own = tf.data.Dataset.from_tensors((values, tf.RaggedTensor.from_row_lengths([1.0], [1])))
    iterator = iter(uneven.InStep(Workers(others_have_data=True), own))
    next(iterator)
    dense, ragged = next(iterator)
    assert dense.shape == (0, 3) and dense.dtype == dtype
    assert ragged.nrows() == 0


def test_own_data_of_equal_length_stays_a_dataset():
    own = tf.data.Dataset.range(4).batch(2)
    assert sharding.keep_in_step(Workers(), own) is own
    assert isinstance(sharding.keep_in_step(Workers(others_have_data=True), own), uneven.InStep)
    assert isinstance(sharding.keep_in_step(Workers(), own.filter(lambda _: True)), uneven.InStep)


def test_own_data_is_not_read_inside_a_function():
    iterator = iter(uneven.InStep(Workers(), tf.data.Dataset.range(4)))
    with pytest.raises(errors.ConfigurationError, match="Call next\\(\\) in Python"):
        tf.function(lambda: next(iterator), autograph=False)()


def test_marks_outlive_a_map():
    own = uneven.InStep(Workers(), tf.data.Dataset.range(4)).own_dataset().map(lambda x: x)
    assert isinstance(sharding.distribute(Workers(), own), uneven.InStep)
    once = sharding.distribute(Workers(), tf.data.Dataset.range(8).batch(4)).map(lambda x: x)
    assert sharding.distribute(Workers(), once) is once


def test_policy_off_is_rebatched_to_this_workers_share():
    dataset = tf.data.Dataset.range(8).batch(4)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    mine = sharding.distribute(Workers(), dataset.with_options(options))
    assert [batch.numpy().tolist() for batch in mine] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_policy_file_gives_each_worker_its_files(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"{i}a\n{i}b\n")
    dataset = tf.data.Dataset.list_files(str(tmp_path / "*.txt"), shuffle=False)
    dataset = dataset.interleave(tf.data.TextLineDataset).batch(4)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.FILE
    dataset = dataset.with_options(options)
    parts = [
        [row for batch in sharding.distribute(Workers(rank), dataset) for row in batch.numpy()] for rank in range(2)
    ]
    assert sorted(parts[0] + parts[1]) == sorted(f"{i}{c}".encode() for i in range(4) for c in "ab")
    assert len(parts[0]) == len(parts[1]) == 4
    with pytest.raises(
        errors.ConfigurationError, match=r"at least one file per worker.*world_size=2.*AutoShardPolicy.DATA"
    ):
        sharding.distribute(Workers(), tf.data.Dataset.range(4).batch(2).with_options(options))


def test_unseeded_shuffle_is_refused_and_seeds_are_compared(monkeypatch):
    monkeypatch.setattr(context.context(), "_seed", None)  # another test's strategy may have set one
    with pytest.raises(errors.ConfigurationError, match="Create the strategy before the dataset, or pass seed="):
        sharding.distribute(Workers(), tf.data.Dataset.range(8).shuffle(8).batch(2).prefetch(1))
    strategy = Workers()
    sharding.distribute(strategy, tf.data.Dataset.range(8).shuffle(8, seed=5).batch(2))
    assert strategy.agreed["seeds"][0][1] == 5


def test_tensorflow_still_shows_the_seeds_of_a_dataset():
    assert randomness.find_seeds(tf.data.Dataset.range(3).shuffle(3, seed=4).map(lambda x: x))[0][1] == 4


def test_a_generators_first_batch_is_given_out_again():
    data = one_shot.OneShot(iter([tf.constant(i) for i in range(3)]))
    assert int(next(iter(data))) == 0
    seen = []
    with pytest.raises(tf.errors.OutOfRangeError):
        for batch in data:
            seen.append(int(batch))
    assert seen == [0, 1, 2]


def test_reusable_iterator_starts_over():
    iterator = reusable.ReusableIterator([1, 2])
    assert next(iterator) == 1
    iterator.initialize()
    assert list(iterator) == [1, 2]
