"""Push, pull and push-pull by one worker and by several, dense and by rows, over one server and over several."""

import threading

import numpy as np
import pytest

from tests.parameter_server.jobs import Worker, job, push, read, sgd, together, zeros
from tfdist.parameter_server.client import Tensor
from tfdist.parameter_server.rules import make_rule

pytestmark = pytest.mark.usefixtures("nothing_left")

ADAM = make_rule("adam", beta_1=0.9, beta_2=0.999, epsilon=1e-7)
# Sizes around what matters: empty, one, the part of an answer, split between servers, grouped.
SHAPES = {"scalar": (), "empty": (0, 3), "vector": (5,), "odd": (7, 3), "large": (70_001, 4), "huge": (300_000, 2)}


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_what_is_written_is_read_on_every_worker(transport, rng):
    tensors = [sgd(name, shape) for name, shape in SHAPES.items()]
    initial = [rng.normal(size=t.shape) for t in tensors]
    with job(2, 3, transport) as running:
        for store in running.stores(tensors, initial=initial):
            assert store.is_shared == (transport == "shm")
            for array, expected in zip(read(store), initial):
                np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("num_servers", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_push_pull_equals_the_rule(transport, num_servers, dtype, rng):
    tensors = [sgd(name, shape, dtype) for name, shape in SHAPES.items()]
    theta = [rng.normal(size=t.shape).astype(dtype) for t in tensors]
    with job(1, num_servers, transport) as running:
        (store,) = running.stores(tensors, initial=theta)
        for step in range(3):
            gradients = [rng.normal(size=t.shape).astype(dtype) for t in tensors]
            theta = [t - np.asarray(0.5, dtype) * g for t, g in zip(theta, gradients)]
            result, fresh = push(store, *gradients, rate=0.5)
            assert (result.updates, result.staleness) == (step + 1, 0)
            for array, expected in zip(fresh, theta):
                np.testing.assert_array_equal(array, expected)
        assert len(store.servers) == num_servers


def test_the_answer_may_lie_where_the_gradient_was(transport, rng):
    gradient = rng.normal(size=(90_000, 4))
    expected = -gradient
    with job(1, 2, transport) as running:
        (store,) = running.stores([sgd("w", (90_000, 4))])
        store.exchange([gradient], [gradient], learning_rate=1.0)
    np.testing.assert_array_equal(gradient, expected)


def test_a_pull_changes_nothing_and_counts_nothing(transport):
    with job(1, 1, transport) as running:
        (store,) = running.stores([sgd("w", (4,))], initial=[np.ones(4)])
        result, fresh = push(store, np.full(4, 9.0), is_pushed=False)
        assert (result.updates, fresh[0][0]) == (0, 1.0)
        assert store.summaries()[0]["workers"]["0"]["pushes"] == 0


def test_tensors_left_out_stay_as_they_are(transport):
    with job(1, 2, transport) as running:
        (store,) = running.stores([sgd("a", (4,)), sgd("b", (5,))], initial=[np.ones(4), np.ones(5)])
        fresh = np.zeros(5)
        store.exchange([None, np.ones(5)], [None, fresh], learning_rate=0.5)
        np.testing.assert_array_equal(fresh, 0.5)
        np.testing.assert_array_equal(read(store)[0], 1.0)


@pytest.mark.parametrize("num_servers", [1, 2])
def test_rows_are_added_where_they_belong(transport, num_servers, rng):
    shape, indices = (5000, 8), np.array([0, 4999, 7, 7, 2500, 2499])
    values = rng.integers(-9, 9, (6, 8)).astype(np.float64)
    expected = np.zeros(shape)
    np.add.at(expected, indices, -values)
    with job(1, num_servers, transport) as running:
        (store,) = running.stores([sgd("embedding", shape)])
        _, fresh = push(store, (indices, values))
        np.testing.assert_array_equal(fresh[0], expected)
        np.testing.assert_array_equal(store.pull_rows(0, indices), expected[indices])
        assert store.pull_rows(0, np.array([], np.int64)).shape == (0, 8)


def test_rows_alone_travel_alone(transport):
    rows, width = 40_000, 16
    indices, values = np.arange(100), np.ones((100, width))
    with job(1, 1, transport) as running:
        (store,) = running.stores([sgd("embedding", (rows, width))])
        before = store.summaries()[0]["workers"]["0"]
        store.exchange([(indices, values)], [None], learning_rate=1.0)
        store.pull_rows(0, indices)
        after = store.summaries()[0]["workers"]["0"]
    moved = 100 * (width * 8 + 8)
    assert 0 <= after["bytes_received"] - before["bytes_received"] - moved < 2000
    assert 0 <= after["bytes_sent"] - before["bytes_sent"] - 100 * width * 8 < 2000


def test_dense_bytes_are_counted_in_shared_memory_too(transport):
    with job(1, 1, transport) as running:
        (store,) = running.stores([sgd("w", (10_000,))])
        before = store.summaries()[0]["workers"]["0"]
        push(store, np.ones(10_000))
        after = store.summaries()[0]["workers"]["0"]
    for key in ("bytes_received", "bytes_sent"):
        assert 0 <= after[key] - before[key] - 80_000 < 2000


def test_concurrent_pushes_add_up_exactly(transport, rng):
    tensors = [sgd("w", (40_000, 3)), sgd("b", (3,)), sgd("embedding", (1000, 4))]
    plans = rng.integers(-8, 8, (3, 20))
    with job(3, 2, transport) as running:
        stores = running.stores(tensors)

        def train(store, plan):
            for value in map(float, plan):
                rows = (np.array([1, 999, 1]), np.full((3, 4), value))
                push(store, np.full((40_000, 3), value), np.full(3, value), rows)

        together(*(lambda s=s, p=p: train(s, p) for s, p in zip(stores, plans)))
        w, b, embedding = read(stores[0])
        assert sum(s["updates"] for s in stores[0].summaries()) == 2 * 60
    total = -float(plans.sum())
    np.testing.assert_array_equal(w, total)
    np.testing.assert_array_equal(b, total)
    np.testing.assert_array_equal(embedding[1], 2 * total)
    np.testing.assert_array_equal(embedding[999], total)
    np.testing.assert_array_equal(embedding[2], 0)


def test_pulls_are_never_torn(transport):
    """Gradients are constant, so every version of the tensor is; a pull between two updates would not be."""
    with job(3, 1, transport) as running:
        pusher, other, puller = running.stores([sgd("w", (100_000,))])
        stop = threading.Event()

        def train(store):
            while not stop.is_set():
                _, (fresh,) = push(store, np.ones(100_000))
                assert fresh.min() == fresh.max()

        workers = [Worker(train, pusher), Worker(train, other)]
        try:
            seen = set()
            for _ in range(60):
                (w,) = read(puller)
                assert w.min() == w.max()
                seen.add(w[0])
        finally:
            stop.set()
            for worker in workers:
                worker.result()
        assert len(seen) > 1


def test_staleness_is_the_number_of_updates_in_between(transport):
    with job(2, 1, transport) as running:
        one, two = running.stores([sgd("w", (3,))])
        assert [push(one, np.ones(3))[0].staleness for _ in range(3)] == [0, 0, 0]
        assert push(two, np.ones(3))[0].staleness == 3
        assert push(two, np.ones(3))[0].staleness == 0
        assert push(one, np.ones(3))[0].staleness == 2
        workers = one.summaries()[0]["workers"]
    assert workers["0"]["staleness"] == {"0": 3, "2": 1}
    assert workers["1"]["staleness"] == {"0": 1, "3": 1}


def test_slots_are_read_and_written(transport, rng):
    tensor = Tensor("w", (50_000,), "float64", ADAM)
    with job(1, 2, transport) as running:
        (store,) = running.stores([tensor])
        gradient = rng.normal(size=50_000)
        push(store, gradient)
        momentum, velocity = np.zeros(50_000), np.zeros(50_000)
        store.read(1, [momentum])
        store.read(2, [velocity])
        np.testing.assert_allclose(momentum, 0.1 * gradient, rtol=1e-12)
        np.testing.assert_allclose(velocity, 0.001 * gradient**2, rtol=1e-12)
        store.write(2, [np.full(50_000, 7.0)])
        store.read(2, [velocity])
        np.testing.assert_array_equal(velocity, 7.0)


def test_both_transports_give_equal_bits(rng):
    tensors = [
        Tensor("w", (9001, 7), "float32", ADAM),
        Tensor("e", (501, 4), "float32", make_rule("rmsprop", rho=0.9, momentum=0.0, epsilon=1e-7)),
    ]
    initial = [rng.normal(size=t.shape).astype("f") for t in tensors]
    steps = [(rng.normal(size=(9001, 7)).astype("f"), (rng.integers(0, 501, 9), rng.normal(size=(9, 4)).astype("f")))
             for _ in range(4)]  # fmt: skip
    found = []
    for transport in ("shm", "tcp"):
        for prefetch in (False, True):
            with job(1, 2, transport) as running:
                (store,) = running.stores(tensors, initial=[a.copy() for a in initial])
                for gradients in steps:
                    push(store, *gradients, rate=0.01, prefetch=prefetch)
                store.flush()
                found.append(np.concatenate([a.ravel() for a in read(store)]))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_rows_are_pulled_while_a_push_waits(transport):
    """A bounded worker blocks in its push; its input pipeline still gets rows."""
    with job(2, 1, transport) as running:
        fast, slow = running.stores([sgd("w", (10, 2))], mode="bounded", staleness_bound=0)
        blocked = Worker(push, fast, np.ones((10, 2)))
        while fast.summaries()[0]["workers"]["0"]["pushes"] == 0:
            pass
        while not (fast.pull_rows(0, [3]) == -1).all():
            pass
        assert blocked.is_alive()
        push(slow, np.ones((10, 2)))
        assert blocked.result()[1][0][0, 0] == -2


def test_two_stores_share_the_connections(transport):
    """The answer to a push of one, which is still under way, does not become the other's."""
    with job(1, 1, transport) as running:
        (one,) = running.stores([sgd("w", (3000,))], name="generator")
        (two,) = running.stores([sgd("w", (3000,))], name="discriminator")
        for _ in range(3):
            push(one, np.ones(3000), prefetch=True)
            assert push(two, np.full(3000, 5.0))[0].staleness == 0
        one.flush()
        assert (read(one)[0][0], read(two)[0][0]) == (-3, -15)
        summary = running.servers[0].summary()
    assert (summary["updates"], summary["parameters_bytes"]) == (6, 2 * 24_000)
    assert summary["workers"]["0"]["pushes"] == 6
    assert summary["workers"]["0"]["staleness"]["0"] >= 4


def test_a_read_discards_what_was_under_way(transport):
    with job(1, 1, transport) as running:
        (store,) = running.stores([sgd("w", (3000,))])
        push(store, np.ones(3000), prefetch=True)
        assert read(store)[0][0] == -1
        result, fresh = push(store, np.ones(3000), prefetch=False)
        assert (result.staleness, fresh[0][0]) == (0, -2)


def test_no_tensors_are_no_trouble(transport):
    with job(1, 2, transport) as running:
        (store,) = running.stores([])
        assert push(store)[0].updates == 0
        assert store.read(0, []) == 0 and zeros(store) == []
