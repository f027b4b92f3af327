import numpy as np
import pytest
import tensorflow as tf

from tfdist.data import permutation


class Alone:
    """A strategy as far as the seed is concerned."""

    def __init__(self, seed=None):
        self.seed = seed

    elastic = None

    def share_bytes(self, value, name=None):
        return value


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 4, 7, 97])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_shares_cover_everything_once_and_differ_by_one(num_rows, world_size):
    shares = [permutation.share(num_rows, rank, world_size) for rank in range(world_size)]
    assert [row for start, stop in shares for row in range(start, stop)] == list(range(num_rows))
    sizes = [stop - start for start, stop in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("shuffle", [False, True, "batch"])
@pytest.mark.parametrize(("num_rows", "batch_size"), [(1, 1), (7, 3), (8, 4), (97, 13), (5, 100)])
def test_an_epoch_is_a_permutation(shuffle, num_rows, batch_size):
    order = permutation.epoch_order(num_rows, batch_size, shuffle, [1, 2, 3])
    assert sorted(order) == list(range(num_rows))
    assert np.array_equal(order, permutation.epoch_order(num_rows, batch_size, shuffle, [1, 2, 3]))
    if shuffle == "batch":
        for start in range(0, num_rows, batch_size):
            assert set(order[start : start + batch_size]) == set(range(start, min(start + batch_size, num_rows)))


def test_epochs_and_seeds_give_other_orders():
    orders = {
        tuple(permutation.epoch_order(50, 8, True, seed)) for seed in ([1, 1, 0], [1, 1, 1], [1, 2, 0], [2, 1, 0])
    }
    assert len(orders) == 4


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("num_rows", "batch_size"), [(1, 4), (7, 3), (12, 4), (37, 8)])
def test_batches_of_all_workers_are_the_global_batches(world_size, num_rows, batch_size):
    data = {"x": np.arange(num_rows), "y": (np.arange(num_rows) * 2.0, None)}
    arrays = {"x": tf.constant(data["x"]), "y": (tf.constant(data["y"][0]), None)}
    datasets = [
        permutation.batches(arrays, num_rows=num_rows, batch_size=batch_size, shuffle=True, seed=[5], rank=r, world_size=world_size)
        for r in range(world_size)
    ]  # fmt: skip
    epochs = []
    for epoch in range(2):
        order = permutation.epoch_order(num_rows, batch_size, True, [5, epoch])
        steps = list(zip(*datasets))
        assert len(steps) == -(-num_rows // batch_size) == int(datasets[0].cardinality())
        for i, parts in enumerate(steps):
            rows = np.concatenate([part["x"] for part in parts])
            assert np.array_equal(rows, order[i * batch_size : (i + 1) * batch_size])
            assert np.array_equal(np.concatenate([part["y"][0] for part in parts]), rows * 2.0)
        epochs.append(order.tolist())
    assert num_rows == 1 or epochs[0] != epochs[1]


def test_job_seed_follows_python_without_consuming_it():
    import random

    random.seed(3)
    state = random.getstate()
    first = permutation.job_seed(Alone())
    assert random.getstate() == state
    assert permutation.job_seed(Alone()) == first
    random.seed(4)
    assert permutation.job_seed(Alone()) != first
    assert permutation.job_seed(Alone(seed=12)) == 12
