import pytest

from tfdist.observe.activity import Activity, between


def server(updates, **workers):
    return {"updates": updates, "workers": {name[1:]: record for name, record in workers.items()}}


def record(pushes, staleness, dropped=0, waited=0.0):
    counts = {str(value): count for value, count in staleness.items()}
    return {"pushes": pushes, "dropped": dropped, "waited_seconds": waited, "staleness": counts}


BEFORE = {"o": [server(110, w0=record(6, {0: 4, 2: 2}, waited=1.0), w1=record(4, {1: 4}))]}
AFTER = {
    "o": [
        server(
            130, w0=record(18, {0: 4, 2: 10, 3: 4}, waited=1.5), w1=record(14, {1: 10, 7: 2}, dropped=2, waited=0.25)
        )
    ]
}


def test_differences_between_two_snapshots():
    seen = between(BEFORE, AFTER, 4.0)
    assert (seen.updates, seen.worker_updates) == (20, {0: 12, 1: 8})
    assert seen.staleness == {1: 6, 2: 8, 3: 4, 7: 2}
    assert seen.waited_seconds == {0: 0.5, 1: 0.25}


def test_logs():
    assert between(BEFORE, AFTER, 4.0).logs() == {
        "staleness_mean": pytest.approx((6 + 16 + 12 + 14) / 20),
        "staleness_max": 7.0,
        "updates_per_second": 5.0,
        "waiting_seconds": 0.75,
        "updates_per_second_worker_0": 3.0,
        "updates_per_second_worker_1": 2.0,
    }


def test_a_gradient_goes_to_all_servers_of_a_store_at_once():
    before = {"o": [server(5, w0=record(5, {0: 5})), server(5, w0=record(5, {0: 5}))]}
    after = {"o": [server(9, w0=record(9, {0: 9}, waited=0.5)), server(8, w0=record(8, {0: 5, 4: 3}, waited=2.0))]}
    seen = between(before, after, 1.0)
    assert (seen.updates, seen.worker_updates, seen.waited_seconds) == (4, {0: 4}, {0: 2.0})
    assert seen.staleness == {0: 4, 4: 3}


def test_stores_add_up_and_a_new_one_has_counted_from_0():
    other = {"p": [server(3, w0=record(3, {1: 3}), w1=record(0, {}))]}
    seen = between(BEFORE, {**AFTER, **other}, 4.0)
    assert (seen.updates, seen.worker_updates) == (23, {0: 15, 1: 8})
    assert seen.staleness[1] == 9


@pytest.mark.parametrize("servers", [{}, {"o": []}, {"o": [server(0, w0=record(0, {}))]}])
def test_where_nothing_was_pushed(servers):
    logs = between({}, servers, 0.0).logs()
    assert logs == dict.fromkeys(("staleness_mean", "staleness_max", "updates_per_second", "waiting_seconds"), 0.0)


def test_one_line_of_text():
    assert between(BEFORE, AFTER, 4.0).text() == (
        "5.0 updates/s (by worker 3.0, 2.0), staleness 2.40 on average and 7 at most, 0.75 s waited"
    )
    alone = Activity(2.0, 8, {0: 8}, {0: 0.0}, {0: 8})
    assert alone.text() == "4.0 updates/s, staleness 0.00 on average and 0 at most, 0.00 s waited"
