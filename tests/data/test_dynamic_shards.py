"""Batches dealt to whoever is free. Workers are threads or turns of one thread, never raced against the clock."""

import threading
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdist
from tfdist.cluster import Cluster
from tfdist.cluster.store import StoreServer
from tfdist.data import dealer, dealing, permutation, pieces, pipeline
from tfdist.errors import ConfigurationError
from tfdist.strategies import keras_dealing

SIZES = [0, 1, 3, 4, 5, 12, 97]  # rows, in batches of 4


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_batches", [0, 1, 2, 3, 31, 32, 33, 1009])
def test_pieces_cover_an_epoch_in_order_and_shrink_to_one(num_batches, world_size):
    table = pieces.pieces(num_batches, world_size)
    assert [index for first, count in table for index in range(first, first + count)] == list(range(num_batches))
    counts = [count for _, count in table]
    assert counts == sorted(counts, reverse=True)
    assert all(count == 1 for count in counts[-world_size:])
    assert num_batches < 1000 or len(table) < num_batches / 2


def dealers(world_size):
    counter = dealer.ProcessCounter()
    return [dealer.Dealer(world_size, rank, counter) for rank in range(world_size)]


def array_data(num_rows, own, **options):
    arrays = {"x": np.arange(num_rows), "y": (tf.range(num_rows) * 2, None)}
    return dealing.dealt_batches(arrays, num_rows=num_rows, batch_size=4, shuffle=True, seed=[5], dealer=own, **options)


def rows_of(batches):
    return np.concatenate([np.zeros(0, int), *[batch["x"] for batch in batches]])


@pytest.mark.parametrize("num_rows", SIZES)
def test_one_worker_gets_what_plain_batches_are(num_rows):
    arrays = {"x": np.arange(num_rows), "y": (tf.range(num_rows) * 2, None)}
    plain = permutation.batches(arrays, num_rows=num_rows, batch_size=4, shuffle=True, seed=[5], rank=0, world_size=1)
    mine = array_data(num_rows, dealer.Dealer(1))
    assert mine.element_spec == plain.element_spec
    for _ in range(3):
        expected, received = list(plain), list(mine)
        assert [batch["x"].numpy().tolist() for batch in received] == [
            batch["x"].numpy().tolist() for batch in expected
        ]
        for batch in received:
            np.testing.assert_array_equal(batch["y"][0], batch["x"] * 2)


@pytest.mark.parametrize("num_rows", SIZES)
@pytest.mark.parametrize("world_size", [2, 3])
def test_threads_share_every_epoch(num_rows, world_size):
    """Nobody waits for anybody, so an epoch of one may run beside the next of another."""
    datasets = [array_data(num_rows, own) for own in dealers(world_size)]
    received = [[] for _ in datasets]

    def work(rank):
        received[rank] = [list(datasets[rank]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for epoch in range(3):
        order = permutation.epoch_order(num_rows, 4, True, [5, epoch])
        expected = sorted(order[start : start + 4].tolist() for start in range(0, num_rows, 4))
        assert sorted(batch["x"].numpy().tolist() for own in received for batch in own[epoch]) == expected


def run_turns(datasets, turns):
    """Iterates an epoch of all `datasets`: worker `turns[i]` takes a batch in turn i, again and again; who ends leaves."""
    iterators = dict(enumerate(map(iter, datasets)))
    received = [[] for _ in datasets]
    ends = []
    while iterators:
        for rank in turns:
            if rank not in iterators:
                continue
            batch = next(iterators[rank], None)
            if batch is None:
                ends.append((rank, sum(map(len, received))))
                del iterators[rank]
            else:
                received[rank].append(batch)
    return received, ends


@pytest.mark.parametrize("kind", ["arrays", "dataset"])
def test_a_slow_worker_gets_less_and_all_end_together(kind, monkeypatch):
    monkeypatch.setattr(pipeline, "has_one_core", lambda: True)  # no thread that works ahead: every turn is the same
    num_rows, slowness = 4 * 400, 5
    if kind == "arrays":
        datasets = [array_data(num_rows, own) for own in dealers(4)]
    else:
        plain = tf.data.Dataset.from_tensor_slices({"x": np.arange(num_rows)}).batch(4)
        datasets = [dealing.dealt(plain, own) for own in dealers(4)]
    received, ends = run_turns(datasets, [0, 1, 2] * slowness + [3])
    counts = [len(own) for own in received]
    assert sum(counts) == 400 and sorted(rows_of(sum(received, []))) == list(range(num_rows))
    assert 20 <= counts[3] <= 30  # its speed's share is 25
    assert ends[-1][1] - ends[0][1] <= 3 * slowness + 1  # a step of the slow worker in the end


@pytest.mark.parametrize("kind", ["arrays", "dataset"])
def test_nobody_takes_what_he_is_not_ready_for(kind):
    """A worker that stands still holds its piece, and the next one at most once it has taken the last batch."""
    counter, taken = dealer.ProcessCounter(), []

    def take(key):
        taken.append(key)
        return counter(key)

    own = dealer.Dealer(2, 0, take)
    plain = tf.data.Dataset.from_tensor_slices({"x": np.arange(4 * 100)}).batch(4)
    dataset = array_data(4 * 100, own) if kind == "arrays" else dealing.dealt(plain, own)
    assert taken == []
    iterator = iter(dataset)
    assert taken == []  # an iterator that nobody asks is none
    first, _, *others = [count for _, count in pieces.pieces(100, 2)]  # the second is the other worker's
    sizes = [first, *others]
    for number in range(1, 12):
        next(iterator)
        held = next(count for count in range(1, 9) if sum(sizes[:count]) >= number)
        assert held - 1 <= len(taken) <= held
    list(iterator)
    assert len(others) <= len(taken) <= len(others) + 2 and set(taken) == {"data/0/0"}


def test_every_data_set_and_epoch_has_its_own_counter():
    own = dealer.Dealer(1)
    first, second = own.deal(3), own.deal(3)
    assert [first.begin(), first.begin(), second.begin()] == [0, 1, 0]
    assert [deal.next_piece(epoch) for deal, epoch in [(first, 0), (first, 1), (second, 0), (first, 0)]] == [
        (0, 1), (0, 1), (0, 1), (1, 1)
    ]  # fmt: skip


@pytest.mark.parametrize("length", ["known", "unknown"])
@pytest.mark.parametrize("num_rows", SIZES)
def test_a_dataset_is_dealt(num_rows, length):
    plain = tf.data.Dataset.from_tensor_slices({"x": np.arange(num_rows)}).shuffle(100, seed=3).batch(4)
    if length == "unknown":
        plain = plain.filter(lambda _: True)
    reference = tf.data.Dataset.from_tensor_slices({"x": np.arange(num_rows)}).shuffle(100, seed=3).batch(4)
    datasets = [dealing.dealt(plain, own) for own in dealers(1)]
    assert datasets[0].element_spec == plain.element_spec
    for _ in range(2):
        expected = [batch["x"].numpy().tolist() for batch in reference]
        assert [batch["x"].numpy().tolist() for batch in datasets[0]] == expected


def test_two_workers_deal_a_shuffled_dataset_of_unknown_length():
    def make():
        plain = tf.data.Dataset.from_tensor_slices({"x": np.arange(50)}).shuffle(100, seed=3).batch(4)
        return plain.filter(lambda _: True)

    datasets = [dealing.dealt(make(), own) for own in dealers(2)]
    epochs = []
    for _ in range(2):
        received, _ = run_turns(datasets, [0, 1, 1])
        assert sorted(rows_of(sum(received, []))) == list(range(50)) and min(map(len, received)) >= 2
        epochs.append(sorted(batch["x"].numpy().tolist() for own in received for batch in own))
    assert epochs[0] != epochs[1]


def test_ragged_and_sparse_batches_are_dealt():
    ragged = tf.ragged.constant([[1], [2, 3], [], [4, 5, 6]])
    sparse = tf.sparse.from_dense([[1, 0], [0, 2], [3, 0], [0, 4]])
    plain = tf.data.Dataset.from_tensor_slices((ragged, sparse)).batch(2)
    received = list(dealing.dealt(plain, dealer.Dealer(1)))
    assert [batch[0].to_list() for batch in received] == [[[1], [2, 3]], [[], [4, 5, 6]]]
    assert tf.sparse.to_dense(received[1][1]).numpy().tolist() == [[3, 0], [0, 4]]


def test_which_datasets_are_dealt():
    in_memory = tf.data.Dataset.from_tensor_slices(np.arange(8)).shuffle(8).map(lambda x: x + 1).batch(2).prefetch(2)
    generated = tf.data.Dataset.from_generator(lambda: iter([1]), output_signature=tf.TensorSpec([])).batch(2)
    assert dealing.is_wanted(in_memory) and not dealing.is_wanted(generated)
    assert dealing.is_wanted(tfdist.data.dynamic_shards(generated).map(lambda x: x)) and not dealing.is_wanted(
        generated
    )
    assert not dealing.is_wanted(in_memory.repeat()) and not dealing.is_wanted([1])
    mine = dealing.dealt(in_memory, dealer.Dealer(1))
    assert dealing.is_dealt(mine) and not dealing.is_wanted(mine)


@pytest.mark.parametrize(
    ("make", "kind"), [(lambda: np.zeros(3), "ndarray"), (lambda: tf.data.Dataset.range(3).repeat(), "one without")]
)
def test_only_datasets_that_end_can_be_dealt(make, kind):
    with pytest.raises(
        ConfigurationError, match=f"dynamic_shards expects a tf.data.Dataset that ends. Received: {kind}"
    ):
        tfdist.data.dynamic_shards(make())


def test_the_store_counts_over_all_workers():
    with StoreServer(secret=b"secret" * 6) as server:
        place = Cluster(rank=0, world_size=2, store_address=server.address, secret=b"secret" * 6)
        counters = [dealer.StoreCounter(place) for _ in range(2)]
        assert [counters[i](key) for i, key in [(0, "a"), (1, "a"), (1, "b"), (0, "a")]] == [0, 1, 0, 2]
        for counter in counters:
            counter.close()


class Recorder(keras.layers.Layer):
    """Notes the rows that the model is trained on."""

    def __init__(self, seen):
        super().__init__()
        self._see = seen.extend  # Keras would make a list of its own of a list

    def call(self, x, training=False):
        if not training or not tf.inside_function():
            return x
        noted = tf.numpy_function(self._note, [x], tf.float32)
        return x + tf.reshape(noted, [])

    def _note(self, x):
        self._see(x[:, 0].astype(int).tolist())
        return np.float32(0)


def make_model(*layers, **options):
    with tfdist.strategy("ring").scope():
        model = keras.Sequential([keras.Input((1,)), *layers, keras.layers.Dense(1)])
        model.compile("sgd", "mse", **options)
    return model


@pytest.mark.parametrize("steps_per_execution", [1, 3])
@pytest.mark.parametrize("num_batches", [1, 7, 40])
def test_fit_ends_an_epoch_when_nothing_is_left(num_batches, steps_per_execution):
    """The other worker takes two batches of epoch 1, all it can of epoch 2, none of epoch 3, which those before do not bound."""
    num_rows = 4 * num_batches - 1
    arrays = (np.arange(num_rows, dtype=np.float32)[:, None], np.zeros(num_rows, np.float32))
    counter, seen = dealer.ProcessCounter(), []
    mine, theirs = [
        dealing.dealt_batches(
            arrays, num_rows=num_rows, batch_size=4, shuffle=True, seed=[1], look_first=True, dealer=own
        )
        for own in [dealer.Dealer(2, rank, counter) for rank in range(2)]
    ]
    assert len(list(theirs)) == 1  # a look, which takes nothing from anybody
    took = iter([theirs.take(2), theirs, theirs.take(0)])
    mine_and_theirs = []

    class Other(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start = len(seen)
            self.others = [int(row) for x, _ in next(took) for row in x[:, 0]]

        def on_epoch_end(self, epoch, logs=None):
            mine_and_theirs.append((seen[self.start :], self.others))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model(Recorder(seen), steps_per_execution=steps_per_execution).fit(
            mine, epochs=3, verbose=0, shuffle=False, callbacks=[Other()]
        )
    (own, others), (own_2, others_2), (own_3, others_3) = mine_and_theirs
    assert not set(own) & set(others) and len(own + others) == len(set(own + others))
    table = pieces.pieces(num_batches, 2)
    order_2, order_3 = [permutation.epoch_order(num_rows, 4, True, [1, epoch]).tolist() for epoch in (2, 3)]
    assert own_2 == order_2[: 4 * table[0][1]]  # that with which this worker begins
    assert sorted(own_2 + others_2) == list(range(num_rows))
    theirs = [row for first, count in table[1:2] for row in order_3[4 * first : 4 * (first + count)]]
    assert own_3 == [row for row in order_3 if row not in theirs] and others_3 == []


def test_keras_still_warns_of_other_data_that_end_early():
    data = tf.data.Dataset.from_tensor_slices((np.zeros((8, 1)), np.zeros(8))).batch(4)
    with pytest.warns(UserWarning, match="ran out of data"):
        make_model().fit(data.filter(lambda *_: True), epochs=2, verbose=0, shuffle=False)


@pytest.mark.parametrize("several_workers", [True, False])
def test_the_progress_bar_takes_no_epoch_for_the_next(several_workers, monkeypatch):
    monkeypatch.setattr(keras_dealing, "strategy_of", lambda model: "strategy" if several_workers else None)
    bar = keras.callbacks.ProgbarLogger()
    bar.set_params({"verbose": 0, "epochs": 2, "steps": None})
    bar.on_epoch_begin(0)
    bar.on_train_batch_end(6)
    bar.on_epoch_end(0)
    assert bar.target == (None if several_workers else 7)
