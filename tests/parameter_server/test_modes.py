"""Who waits for whom, and which gradient counts how much, in all modes; prefetch; what the server does besides."""

import numpy as np
import pytest

from tests.parameter_server.jobs import Worker, job, push, read, sgd, together
from tfdist.errors import ConfigurationError, ServerLostError, TransportError, WorkerLostError
from tfdist.parameter_server.client import Client, Options, Tensor
from tfdist.parameter_server.rules import make_rule
from tfdist.staleness import weighting
from tfdist.staleness.compensation import DelayCompensation

pytestmark = pytest.mark.usefixtures("nothing_left")

N = 5000


def pushes(store, rank):
    """How many pushes of a worker the first server has counted."""
    return store.summaries()[0]["workers"][str(rank)]["pushes"]


def until(condition):
    """Waits for what another thread does; the test's own time-out ends it."""
    while not condition():
        pass


# Bounded staleness


def wait_bounded(running, bound):
    """Returns (fast, slow, the fast worker's blocked push): it has come `bound` steps ahead, and one more."""
    fast, slow = running.stores([sgd("w", (N,))], mode="bounded", staleness_bound=bound)
    for _ in range(bound):
        push(fast, np.ones(N))  # none of these waits
    blocked = Worker(push, fast, np.ones(N))
    until(lambda: pushes(fast, 0) == bound + 1)
    assert blocked.is_alive()
    return fast, slow, blocked


@pytest.mark.parametrize("bound", [0, 2])
def test_a_bounded_worker_goes_on_when_the_slowest_has_pushed(transport, bound):
    with job(2, 1, transport) as running:
        fast, slow, blocked = wait_bounded(running, bound)
        assert push(slow, np.ones(N))[1][0][0] == -(bound + 2)
        result, (fresh,) = blocked.result()
        assert (fresh == -(bound + 2)).all()  # it sees what it waited for
        assert (result.updates, result.waited_seconds > 0) == (bound + 2, True)
        assert fast.summaries()[0]["workers"]["0"]["waited_seconds"] >= result.waited_seconds


def test_a_bounded_worker_goes_on_when_the_slowest_pauses(transport):
    with job(2, 1, transport) as running:
        fast, slow, blocked = wait_bounded(running, 1)
        slow.set_active(False)
        assert blocked.result()[1][0][0] == -2
        push(fast, np.ones(N))
        slow.set_active(True)  # it stands with the others, and holds nobody up
        push(fast, np.ones(N))
        assert push(slow, np.ones(N))[0].staleness == 4


def test_a_bounded_worker_goes_on_when_the_slowest_leaves(transport):
    with job(2, 1, transport) as running:
        _, _, blocked = wait_bounded(running, 1)
        running.clients[1].close()
        assert blocked.result()[1][0][0] == -2


def test_two_bounded_workers_cannot_block_each_other(transport):
    with job(2, 2, transport) as running:
        stores = running.stores([sgd("w", (N,)), sgd("v", (N,))], mode="bounded", staleness_bound=0)
        together(*(lambda s=s: [push(s, np.ones(N), np.ones(N)) for _ in range(30)] for s in stores))
        assert read(stores[0])[0][0] == -60


# Synchronous


def test_sync_is_the_weighted_mean_in_the_order_of_ranks(transport):
    rng = np.random.default_rng(3)
    gradients, weights = rng.normal(size=(3, N)).astype("f"), [3.0, 1.0, 4.0]
    rows = [(rng.integers(0, 40, 6), rng.normal(size=(6, 2)).astype("f")) for _ in range(3)]
    with job(3, 2, transport) as running:
        stores = running.stores([sgd("w", (N,), "float32"), sgd("e", (40, 2), "float32")], mode="sync")
        answers = together(*(lambda i=i: push(stores[i], gradients[i], rows[i], weight=weights[i]) for i in range(3)))
    total = (np.float32(3) * gradients[0] + gradients[1]) + np.float32(4) * gradients[2]
    table = np.zeros((40, 2))
    for (indices, values), weight in zip(rows, weights):
        np.add.at(table, indices, values.astype("d") * weight / 8)
    for result, (w, e) in answers:
        np.testing.assert_array_equal(w, -(total / np.float32(8)))
        np.testing.assert_allclose(e, -table, rtol=1e-5, atol=1e-6)
        assert (result.updates, result.staleness, result.is_dropped) == (1, 0, 0)


def test_equal_weights_are_the_plain_mean(transport):
    gradients = np.random.default_rng(3).normal(size=(3, N)).astype("f")
    with job(3, 1, transport) as running:
        stores = running.stores([sgd("w", (N,), "float32")], mode="sync")
        answers = together(*(lambda i=i: push(stores[i], gradients[i], weight=0.3) for i in range(3)))
    expected = -((gradients[0] + gradients[1] + gradients[2]) / np.float32(3))
    for _, (fresh,) in answers:
        np.testing.assert_array_equal(fresh, expected)


def test_gradients_may_be_added(transport):
    with job(2, 1, transport) as running:
        stores = running.stores([sgd("w", (N,)), sgd("e", (9, 2))], mode="sync")
        rows = (np.array([1, 8]), np.ones((2, 2)))
        (_, (w, e)), _ = together(*(lambda s=s: push(s, np.ones(N), rows, is_sum=True) for s in stores))
        assert (w[0], e[1, 0], e[8, 1], e[2, 0]) == (-2, -2, -2, 0)


def test_a_gradient_of_no_weight_may_be_anything(transport):
    bad = (np.array([2]), np.full((1, 2), np.inf))
    with job(2, 1, transport) as running:
        stores = running.stores([sgd("w", (N,)), sgd("e", (9, 2))], mode="sync")
        good, skips = (np.array([2]), np.ones((1, 2))), {"not_finite": "skip", "is_synchronous": True}
        for bad_rank, store in enumerate(stores):
            calls = [lambda s=s: push(s, np.ones(N), good) for s in stores]
            calls[bad_rank] = lambda s=store: push(s, np.full(N, np.nan), bad, **skips)
            answers = together(*calls)
            assert answers[bad_rank][0].is_skipped
            for _, (w, e) in answers:
                assert (w == -(bad_rank + 1)).all() and e[2, 0] == -(bad_rank + 1)


def test_a_step_of_no_weight_at_all_moves_nothing_but_the_count(transport):
    tensors = [Tensor("w", (N,), "float64", make_rule("sgd", momentum=0.9))]
    with job(2, 1, transport) as running:
        stores = running.stores(tensors, mode="sync")
        together(*(lambda s=s: push(s, np.ones(N)) for s in stores))
        skip = {"not_finite": "skip", "is_synchronous": True}
        for result, (fresh,) in together(*(lambda s=s: push(s, np.full(N, np.nan), **skip) for s in stores)):
            assert (result.updates, result.is_skipped, fresh[0]) == (2, 1, -1)


def test_backup_workers_drop_the_late_gradient(transport):
    with job(3, 1, transport) as running:
        stores = running.stores([sgd("w", (N,))], mode="sync", backup_workers=1)
        answers = together(*(lambda s=s: push(s, np.ones(N)) for s in stores[:2]))
        assert [(r.updates, r.is_dropped, f[0][0]) for r, f in answers] == [(1, 0, -1), (1, 0, -1)]
        result, (fresh,) = push(stores[2], np.full(N, 100.0))
        assert (result.updates, result.staleness, result.is_dropped, fresh[0]) == (1, 1, 1, -1)
        together(*(lambda s=s: push(s, np.ones(N)) for s in stores[1:]))  # it takes part in the next step
        assert read(stores[0])[0][0] == -2
        workers = stores[0].summaries()[0]["workers"]
    assert [workers[r]["dropped"] for r in "012"] == [0, 0, 1]
    assert [workers[r]["pushes"] for r in "012"] == [1, 2, 2]


def test_backup_workers_stand_the_loss_of_one(transport):
    with job(3, 1, transport) as running:
        stores = running.stores([sgd("w", (N,))], mode="sync", backup_workers=1)
        running.clients[1].close()
        together(*(lambda s=s: push(s, np.ones(N)) for s in (stores[0], stores[2])))
        assert read(stores[0])[0][0] == -1


def test_sync_waits_for_one_less_when_a_worker_pauses(transport):
    with job(2, 1, transport) as running:
        one, two = running.stores([sgd("w", (N,))], mode="sync")
        blocked = Worker(push, one, np.ones(N))
        assert blocked.is_alive()
        two.set_active(False)
        assert blocked.result()[1][0][0] == -1
        assert push(one, np.ones(N))[0].updates == 2


def test_a_lost_worker_is_told_to_those_who_wait(transport):
    with job(3, 2, transport) as running:
        stores = running.stores([sgd("w", (N,)), sgd("v", (N,))], mode="sync", initial=[np.ones(N), np.ones(N)])
        waiting = [Worker(push, stores[r], np.ones(N), np.ones(N)) for r in (0, 2)]
        running.clients[1].close()
        for worker in waiting:
            with pytest.raises(WorkerLostError, match="worker 1 closed its connection to the parameter server"):
                worker.result()
        assert (read(stores[0])[0] == 1).all()


def test_a_client_that_closes_late_does_not_speak_for_its_successor(transport):
    with job(2, 1, transport) as running:
        stores = running.stores([sgd("w", (N,))], mode="sync")
        successor = Client(running.clients[0].addresses, 1, b"s" * 32, transport=transport)
        try:
            store = successor.add_store("model", stores[1].tensors, Options(mode="sync"))
            store.begin(1, 0)
            store.set_active(True)
            running.clients[1].close()
            (_, (fresh,)), _ = together(lambda: push(stores[0], np.ones(N)), lambda: push(store, np.ones(N)))
            assert fresh[0] == -1
        finally:
            successor.close()


def test_half_floats_cannot_be_averaged():
    with job(1, 1) as running:
        tensors = [Tensor("w", (4,), "float16", make_rule("sgd", momentum=0.0))]
        with pytest.raises(ConfigurationError, match="A store of 8 bytes was expected to be possible. Received: code"):
            running.clients[0].add_store("model", tensors, Options(mode="sync"))


# Prefetch


@pytest.mark.parametrize("num_servers", [1, 2])
def test_prefetch_answers_with_what_the_push_before_made(transport, num_servers):
    with job(1, num_servers, transport) as running:
        (store,) = running.stores(
            [sgd("w", (9000, 3)), sgd("b", (3,))], initial=[np.full((9000, 3), 8.0), np.full(3, 8.0)]
        )
        fresh = [np.full((9000, 3), 8.0), np.full(3, 8.0)]  # what the worker has
        seen = []
        for _ in range(4):
            result = store.exchange([np.ones((9000, 3)), np.ones(3)], fresh, learning_rate=1.0, prefetch=True)
            seen.append((result.updates, result.staleness, fresh[0].min(), fresh[0].max(), fresh[1][0]))
        # The first push was fresh; every later gradient is one update late, which is known an answer later.
        assert seen == [(0, 0, 8, 8, 8), (1, 0, 7, 7, 7), (2, 1, 6, 6, 6), (3, 1, 5, 5, 5)]
        store.flush()
        assert read(store)[0][0, 0] == 4
        staleness = store.summaries()[0]["workers"]["0"]["staleness"]
    assert staleness == {"0": 1, "1": 3}


def test_prefetch_begins_anew_when_other_tensors_are_pushed(transport):
    with job(1, 1, transport) as running:
        (store,) = running.stores([sgd("a", (N,)), sgd("b", (N,))])
        a, b = np.zeros(N), np.zeros(N)
        store.exchange([np.ones(N), None], [a, None], learning_rate=1.0, prefetch=True)
        store.exchange([np.ones(N), np.ones(N)], [a, b], learning_rate=1.0, prefetch=True)
        assert (a[0], b[0]) == (0, 0)
        store.exchange([np.ones(N), np.ones(N)], [a, b], learning_rate=1.0, prefetch=True)
        assert (a[0], b[0]) == (-2, -1)


def test_new_parameters_end_what_was_under_way(transport):
    with job(1, 1, transport) as running:
        (store,) = running.stores([sgd("w", (N,))])
        fresh = np.zeros(N)
        store.exchange([np.ones(N)], [fresh], learning_rate=1.0, prefetch=True)
        store.flush()
        store.begin(2, 10, tell=True)
        fresh[:] = 55.0
        result = store.exchange([np.ones(N)], [fresh], learning_rate=1.0, prefetch=True)
        assert (result.updates, fresh[0]) == (10, 55)


# What the server does besides


@pytest.mark.parametrize("name", ["none", "inverse", "exponential"])
def test_late_gradients_weigh_as_the_table_says(transport, name):
    table = weighting.table(name, 4)
    with job(2, 1, transport) as running:
        one, two = running.stores([sgd("w", (N,))], step_weights=tuple(table))
        for late in (1, 2, 3, 6):
            before = read(one)[0][0]
            read(two)
            for _ in range(late):
                _, (fresh,) = push(one, np.zeros(N))
            result, (fresh,) = push(two, np.ones(N))
            assert result.staleness == late
            assert fresh[0] == before - table[min(late, 3)]


@pytest.mark.parametrize("kind", ["constant", "adaptive"])
def test_delay_compensation_equals_the_rule_object(transport, kind):
    rng = np.random.default_rng(7)
    theta, shape = rng.normal(size=(9000, 2)), (9000, 2)
    rule = DelayCompensation(2.0, kind, m=0.95)
    mean_square = np.zeros(shape) if rule.needs_mean_square else None
    decay = rule.m if kind == "adaptive" else -1.0
    with job(2, 2, transport) as running:
        stores = running.stores([sgd("w", shape)], initial=[theta], compensation=2.0, compensation_decay=decay)
        for store in stores:
            read(store)
        sent = [theta.copy(), theta.copy()]
        for rank in (0, 0, 1, 0, 1, 1):
            gradient = rng.normal(size=shape)
            theta = theta - 0.1 * rule.apply(gradient, theta, sent[rank], mean_square)
            _, (fresh,) = push(stores[rank], gradient, rate=0.1)
            np.testing.assert_allclose(fresh, theta, rtol=1e-10)
            sent[rank] = theta


def test_moving_average_and_weight_decay(transport):
    tensors = [sgd("w", (N,)), Tensor("b", (3,), "float64", make_rule("sgd", momentum=0.0), decays=True)]
    with job(1, 2, transport) as running:
        options = {"average_momentum": 0.5, "average_overwrites": 3, "weight_decay": 0.125}
        (store,) = running.stores(tensors, initial=[np.ones(N), np.ones(3)], **options)
        w, b = 1.0, 1.0
        mean_w = mean_b = 0.0
        for count in (1, 2, 3):
            _, fresh = push(store, np.ones(N), np.ones(3), rate=0.5)
            w, b = w - 0.5, b - 0.125 * 0.5 * b - 0.5
            momentum = 0.0 if count == 1 else 0.5
            mean_w, mean_b = momentum * mean_w + (1 - momentum) * w, momentum * mean_b + (1 - momentum) * b
            if count == 3:
                w, b = mean_w, mean_b
            np.testing.assert_allclose([fresh[0][0], fresh[1][0]], [w, b], rtol=1e-12)
        average = [np.zeros(N), np.zeros(3)]
        store.read(1, average)
        np.testing.assert_allclose([average[0][-1], average[1][-1]], [mean_w, mean_b], rtol=1e-12)


def test_a_worker_that_comes_back_goes_on_counting(transport):
    """A new client of a rank numbers its pushes from where the old one stopped: none passes for a repetition."""
    with job(1, 1, transport) as running:
        (store,) = running.stores([sgd("w", (N,))])
        push(store, np.ones(N))
        push(store, np.ones(N))
        with_tensors = store.tensors
        running.clients[0].close()
        client = Client([running.servers[0].address], 0, b"s" * 32, transport=transport)
        try:
            again = client.add_store("model", with_tensors, Options())
            again.begin(1, 0)
            assert push(again, np.ones(N))[1][0][0] == -3
        finally:
            client.close()


# A lost worker, where the job goes on without it


def test_a_step_goes_on_with_the_survivors(transport):
    """Those who wait already, and those who come later: the mean is over the survivors, and by their weights."""
    with job(3, 2, transport) as running:
        stores = running.stores([sgd("w", (N,)), sgd("v", (N,))], mode="sync", recovers=True)
        waiting = Worker(lambda: push(stores[0], np.ones(N), np.ones(N), weight=3.0))
        running.clients[1].close()
        _, (w, v) = push(stores[2], np.full(N, 5.0), np.full(N, 9.0))
        assert (w == -(3 * 1 + 5) / 4).all() and (v == -(3 * 1 + 9) / 4).all()
        assert waiting.result()[0].updates == 1
        answers = together(*(lambda s=s: push(s, np.ones(N), np.ones(N)) for s in (stores[0], stores[2])))
        assert [result.updates for result, _ in answers] == [2, 2]


def test_what_a_lost_worker_has_pushed_counts_on_no_server(transport):
    """Its gradient may not have reached all of them."""
    with job(3, 1, transport) as running:
        stores = running.stores([sgd("w", (N,))], mode="sync", recovers=True)
        lost = Worker(push, stores[1], np.full(N, 100.0))
        until(lambda: stores[0].summaries()[0]["workers"]["1"]["bytes_received"] >= N * 8)
        running.clients[1].close()
        with pytest.raises(ServerLostError):
            lost.result()
        answers = together(*(lambda s=s: push(s, np.ones(N)) for s in (stores[0], stores[2])))
        assert [fresh[0][0] for _, fresh in answers] == [-1, -1]


def test_a_lost_worker_comes_back_with_its_rank(transport):
    with job(2, 2, transport) as running:
        stores = running.stores([sgd("w", (N,)), sgd("v", (N,))], mode="sync", recovers=True)
        together(*(lambda s=s: push(s, np.ones(N), np.ones(N)) for s in stores))
        running.clients[1].close()
        push(stores[0], np.ones(N), np.ones(N))
        again = Client(running.clients[0].addresses, 1, b"s" * 32, transport=transport)
        try:
            store = again.add_store("model", stores[1].tensors, Options(mode="sync", recovers=True))
            store.set_active(True)
            assert store.join() == 1
            answers = together(*(lambda s=s: push(s, np.ones(N), np.ones(N)) for s in (stores[0], store)))
            assert [(result.updates, fresh[1][0]) for result, fresh in answers] == [(3, -3), (3, -3)]
        finally:
            again.close()


def test_a_worker_whose_place_is_taken_is_refused(transport):
    with job(2, 1, transport) as running:
        stores = running.stores([sgd("w", (N,))], recovers=True)
        push(stores[1], np.ones(N))
        again = Client(running.clients[0].addresses, 1, b"s" * 32, transport=transport)
        try:
            store = again.add_store("model", stores[1].tensors, Options(recovers=True))
            store.join()
            with pytest.raises(TransportError, match="another process has connected as worker 1 since"):
                push(stores[1], np.ones(N))
            assert push(store, np.ones(N))[1][0][0] == -2  # its first push is none of those that were counted
        finally:
            again.close()
