"""Who is in the next generation: the rules, then members that agree, as threads with a real store between them."""

import threading
import time

import pytest

from tfdist.cluster.lives import DEAD
from tfdist.cluster.store import StoreClient, StoreServer
from tfdist.elastic.agreement import (
    Agreement,
    Decision,
    Report,
    dead_members,
    decide,
    remaining,
    without,
)

SECRET = b"a secret"
MEMBERS = {0: 0, 2: 0, 1: 3, 3: 0}  # 1 has come again: it is junior to 2


def reports_of(**lost):
    return {int(slot[1:]): Report(lost=set(missed)) for slot, missed in lost.items()}


@pytest.mark.parametrize(
    "lost, dead, left",
    [
        ({}, (), [0, 2, 1, 3]),
        ({}, (0,), [2, 1, 3]),  # the launcher has seen it die
        ({"r0": [1], "r2": [1], "r3": [1]}, (), [0, 2, 3]),
        ({"r0": [1], "r2": [], "r3": []}, (), [0, 2, 3]),  # one accuser is enough
        ({"r2": [0], "r1": [0]}, (), [2, 1, 3]),  # the senior one is lost
        ({"r0": [2], "r2": [0]}, (), [0, 1, 3]),  # each accuses the other: the senior one stays
        ({"r1": [2], "r2": [1]}, (), [0, 2, 3]),
        ({"r0": [2], "r2": [1, 3]}, (), [0, 1, 3]),  # who is out accuses nobody
        ({"r0": [1]}, (0,), [2, 1, 3]),  # nor who is dead
        ({"r1": [1]}, (), [0, 2, 1, 3]),  # nor anybody itself
        ({"r0": [1, 2, 3]}, (), [0]),
        ({}, (0, 1, 2, 3), []),
    ],
)
def test_who_remains(lost, dead, left):
    assert remaining(MEMBERS, reports_of(**lost), set(dead)) == left


def test_the_reports_of_others_than_members_count_for_nothing():
    assert remaining({0: 0, 1: 0}, reports_of(r7=[0, 1]), set()) == [0, 1]


def test_what_one_has_committed_has_happened():
    reports = {
        0: Report(open={10, 20}, committed={10: 4, 30: 9}),
        2: Report(open={10, 40}, committed={10: 5, 20: 1}),
        3: Report(open=set(), committed={40: 1}),
    }
    decision = decide(MEMBERS, [0, 2, 3], reports, 1)
    assert decision.members == {0: 0, 2: 0, 3: 0} and list(decision.members) == [0, 2, 3]
    assert decision.counts == {10: 5, 20: 1, 40: 1}  # of channels on which somebody has something open
    assert decision.error == "" and decision.joined == () and decision.is_common


def test_what_a_commit_has_told_one_all_know():
    reports = {0: Report(flags={0: 3, 1: 0}, num_joins=2), 2: Report(flags={0: 4, 1: 0}, num_joins=2)}
    decision = decide(MEMBERS, [0, 2], reports, 1)
    assert decision.flags == {0: 4, 1: 0} and decision.num_joins == 2


def test_what_only_a_lost_one_has_committed_has_not_happened():
    reports = {0: Report(open={10}, committed={10: 4}), 1: Report(committed={10: 5})}
    assert decide(MEMBERS, [0], reports, 1).counts == {10: 4}


def test_too_few_are_left():
    decision = decide(MEMBERS, [2, 3], {2: Report(), 3: Report()}, 3)
    assert decision.error == "2 workers are left of at least 3 (min_workers). Lost: rank 0, 1."


def test_joiners_that_all_know_join_as_the_most_junior():
    joiners = [[1, 4], [5, 1]]
    reports = {slot: Report(joiners=joiners) for slot in (0, 2, 3)}
    decision = decide(MEMBERS, [0, 2, 3], reports, 1)
    assert list(decision.members.items()) == [(0, 0), (2, 0), (3, 0), (1, 4), (5, 1)]
    assert decision.joined == (1, 5) and decision.is_common


def test_nobody_joins_where_one_is_not_ready_for_it():
    reports = {0: Report(joiners=[[5, 1]]), 2: Report(joiners=[[5, 1]]), 1: Report(lost={3})}
    decision = decide(MEMBERS, [0, 2, 1], reports, 1)
    assert list(decision.members) == [0, 2, 1] and decision.joined == () and not decision.is_common


def test_who_has_died_before_it_joined_does_not_join():
    decision = Decision({0: 0, 2: 0, 5: 1, 6: 2}, {}, joined=(5, 6))
    assert without(decision, {5}) == Decision({0: 0, 2: 0, 6: 2}, {}, joined=(6,))


def test_decisions_and_reports_survive_the_store():
    decision = Decision(
        {2: 1, 0: 0}, {2**64 - 1: 7}, joined=(2,), is_common=False, error="why", flags={0: 5}, num_joins=6
    )
    again = Decision.from_bytes(decision.to_bytes())
    assert again == decision and list(again.members) == [2, 0]
    report = Report({1}, {2**64 - 1}, {2**64 - 1: 8}, [[5, 1]], {0: 5}, 6)
    assert Report.from_bytes(report.to_bytes()) == report


def test_reports_of_the_native_core():
    report = Report.of("open 7 3\nopen 7 4\ncommitted 7 3\ncommitted 9 12\nflag 0 8\n", [1], [[2, 5]], 6)
    assert report == Report({1}, {7}, {7: 3, 9: 12}, [[2, 5]], {0: 8}, 6)


@pytest.fixture
def store():
    with StoreServer("127.0.0.1", 0, secret=SECRET) as server:
        yield server


def client(store):
    return StoreClient(store.address, SECRET)


def test_a_death_counts_for_the_incarnation_that_died(store):
    with client(store) as connection:
        for slot, incarnation in ((0, 0), (1, 2), (9, 0)):
            connection.set(f"{DEAD}{slot}", str(incarnation).encode())
        assert dead_members(connection, MEMBERS) == {0}  # 1 has come again since, and 9 is no member


class Jury:
    """Members of generation 7, each a thread that agrees with the others after a while."""

    def __init__(self, store, members, **options):
        self._store, self._members = store, members
        self._options = {"min_workers": 1, "patience": 5.0, "timeout": 20.0, **options}
        self.outcomes, self._threads = {}, []

    def report(self, slot, report, after=0.0, **options):
        thread = threading.Thread(target=self._agree, args=(slot, report, after, options))
        self._threads.append(thread)
        thread.start()
        return self

    def _agree(self, slot, report, after, options):
        time.sleep(after)
        with client(self._store) as connection:
            agreement = Agreement(connection, slot, self._members, 7, **{**self._options, **options})
            try:
                self.outcomes[slot] = agreement.agree(report)
            except TimeoutError as error:
                self.outcomes[slot] = error

    def decisions(self):
        """Returns slot -> outcome of all who reported."""
        for thread in self._threads:
            thread.join(timeout=30)
            assert not thread.is_alive()
        return self.outcomes

    def decision(self):
        """Returns the decision, which must be the same for all who reported."""
        first, *others = self.decisions().values()
        assert all(other == first for other in others)
        return first


def test_all_members_agree(store):
    jury = Jury(store, MEMBERS)
    jury.report(0, Report({1}, {10}, {10: 2})).report(2, Report({1}, set(), {10: 3}), after=0.1)
    decision = jury.report(3, Report({1}, {10}, {10: 2}), after=0.2).decision()
    assert decision == Decision({0: 0, 2: 0, 3: 0}, {10: 3})


def test_who_does_not_report_is_missed_in_the_end(store):
    jury = Jury(store, MEMBERS, patience=0.3)
    decision = jury.report(0, Report({1})).report(2, Report({1})).decision()
    assert list(decision.members) == [0, 2]


def test_nobody_is_missed_before_its_time(store):
    jury = Jury(store, MEMBERS, patience=5.0)
    for slot in (0, 2, 3):
        jury.report(slot, Report({1}), after=0.6 if slot == 3 else 0.0)
    assert list(jury.decision().members) == [0, 2, 3]


def test_the_launchers_notice_ends_the_wait(store):
    jury = Jury(store, MEMBERS, patience=100.0, timeout=100.0)
    jury.report(0, Report({1})).report(2, Report({1}))
    with client(store) as connection:
        connection.set(f"{DEAD}3", b"0")
    assert list(jury.decision().members) == [0, 2]


def test_the_notice_of_a_former_death_does_not(store):
    with client(store) as connection:
        connection.set(f"{DEAD}1", b"2")  # now there is incarnation 3
    jury = Jury(store, MEMBERS)
    for slot in MEMBERS:
        jury.report(slot, Report({3} if slot != 3 else set()))
    assert list(jury.decision().members) == [0, 2, 1]


def test_two_accuse_each_other(store):
    jury = Jury(store, MEMBERS)
    jury.report(0, Report({2})).report(2, Report({0})).report(1, Report(set())).report(3, Report(set()))
    assert list(jury.decision().members) == [0, 1, 3]


def test_the_senior_one_is_lost(store):
    jury = Jury(store, MEMBERS)
    for slot in (2, 1, 3):
        jury.report(slot, Report({0}))
    assert list(jury.decision().members) == [2, 1, 3]


def test_a_decision_once_claimed_stands(store):
    with client(store) as connection:
        connection.claim("elastic/7/decision", Decision({2: 0}, {}).to_bytes())
    jury = Jury(store, MEMBERS).report(0, Report({2}))
    assert jury.decision() == Decision({2: 0}, {})  # 0 learns that it is out


def test_who_claims_second_takes_the_first_ones_decision(store):
    first = Decision({1: 0}, {})

    class Late(StoreClient):
        def claim(self, key, value):
            super().claim(key, first.to_bytes())  # by somebody else, at the last moment
            return super().claim(key, value)

    with Late(store.address, SECRET) as connection:
        agreement = Agreement(connection, 0, {0: 0, 1: 0}, 7, min_workers=1, patience=5.0, timeout=5.0)
        assert agreement.agree(Report({1})) == first


def test_two_who_take_themselves_for_the_senior_one_decide_once(store):
    jury = Jury(store, {0: 0, 1: 0}, patience=0.2)
    for slot in (0, 1):
        jury.report(slot, Report({1 - slot}))
    assert len(jury.decision().members) == 1


def test_below_min_workers(store):
    jury = Jury(store, MEMBERS, min_workers=3)
    decision = jury.report(0, Report({1, 3})).report(2, Report({1})).decision()
    assert decision.error == "2 workers are left of at least 3 (min_workers). Lost: rank 1, 3."


def test_joiners_come_in_once_all_are_at_the_same_place(store):
    jury = Jury(store, {0: 0, 1: 0})
    jury.report(0, Report(joiners=[[2, 1]])).report(1, Report(joiners=[[2, 1]]), after=0.3)
    assert jury.decision() == Decision({0: 0, 1: 0, 2: 1}, {}, joined=(2,))


def test_a_joiner_that_has_died_does_not_come_in(store):
    with client(store) as connection:
        connection.set(f"{DEAD}2", b"1")
    jury = Jury(store, {0: 0, 1: 0})
    jury.report(0, Report(joiners=[[2, 1], [3, 1]])).report(1, Report(joiners=[[2, 1], [3, 1]]))
    assert jury.decision() == Decision({0: 0, 1: 0, 3: 1}, {}, joined=(3,))


def test_there_is_no_decision_in_time(store):
    with client(store) as connection:
        connection.set(f"{DEAD}0", b"0")  # of this very worker: a launcher that errs
    error = Jury(store, {0: 0, 1: 0}, timeout=0.4, patience=9.0).report(0, Report()).decision()
    assert "to agree on who is left within 0.4 s. Received: reports of [0] of [0, 1]." in str(error)
