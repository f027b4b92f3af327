"""Data divided anew when workers are lost or come: each row once an epoch. The members are objects that take turns."""

import numpy as np
import pytest
import tensorflow as tf

from tfdist.data import permutation, recut, shares


class Batches(list):
    """In the place of a `tf.data.Dataset`, which takes its time."""

    def __iter__(self):
        return Iterator(super().__iter__())


class Iterator:
    def __init__(self, batches):
        self._batches = batches

    def __next__(self):
        return next(self._batches)


def plain_whole(arrays, epoch, index, count):
    return plain_rest(arrays, epoch, 0, np.zeros(0, np.int64), index, count)


def plain_rest(arrays, epoch, first, missed, index, count):
    order, batches = arrays.order(epoch), Batches()
    for batch in range(first, arrays.num_batches):
        numbers = arrays.batch_of(order, batch, first, missed)
        start, stop = permutation.share(len(numbers), index, count)
        batches.append(numbers[start:stop])
    return batches


@pytest.fixture(autouse=True)
def plain(request, monkeypatch):
    if "with_tensorflow" not in request.fixturenames:
        monkeypatch.setattr(recut.Arrays, "whole", plain_whole)
        monkeypatch.setattr(recut.Arrays, "rest", plain_rest)


@pytest.fixture
def with_tensorflow():
    """Real datasets."""


class Job:
    """Knows the generations; makes the members' parts of an epoch, and takes steps with all of them."""

    def __init__(self, members, num_rows, batch_size, shuffle=True, arrays=None):
        self.history, self.generation = {0: tuple(members)}, 0
        self._sizes = (num_rows, batch_size, shuffle)
        self._source = np.arange(num_rows) if arrays is None else arrays
        self.data = {slot: self._data(slot) for slot in members}
        self.seen, self.late = [], []  # the rows of the steps; those that were lost with the last step

    def _data(self, slot):
        return recut.Recutting(Strategy(Elastic(self, slot)), arrays=recut.Arrays(self._source, *self._sizes, seed=[5]))

    @property
    def members(self):
        return self.history[self.generation]

    def _become(self, members):
        self.generation += 1
        self.history[self.generation] = tuple(members)

    def begin_epoch(self):
        self.seen, self.late = [], []
        self.parts = {slot: iter(self.data[slot]) for slot in self.members}
        self.num_left = self.parts[self.members[0]].num_left

    def lose(self, lost):
        """Members are lost between two steps; the others hear of it at once."""
        self._become([slot for slot in self.members if slot not in lost])

    def step(self, lost=()):
        """A step of all members; `lost` are so in the middle of it."""
        rows = {slot: np.array(next(self.parts[slot].ready())).tolist() for slot in self.members}
        if lost:
            self.lose(lost)
        self.num_left -= 1
        for slot in self.members:
            self.parts[slot].done(self.generation, 1)
            self.seen += rows[slot]
        if not self.num_left:
            self.late = [row for slot in lost for row in rows[slot]]
        assert len({str(self.parts[slot].state()) for slot in self.members}) == 1

    def join(self, *slots):
        """Workers come between two steps, as `keras_elastic` lets them in."""
        told = self.parts[self.members[0]].state()
        new = [slot for slot in slots if slot not in self.members]
        for slot in new:
            self.data[slot] = self._data(slot)
            self.data[slot].strategy.elastic.is_joining = True
            self.parts[slot] = iter(self.data[slot])
            next(self.parts[slot].ready())  # it takes one step alone
        self._become([*self.members, *new])
        for slot in new:
            self.data[slot].strategy.elastic.is_joining = False
            self.parts[slot].go_to(told)

    def run_epoch(self, events=()):
        """Returns the sorted rows of an epoch; `events` are `(batch, what, slots)`."""
        self.begin_epoch()
        for batch in range(self.num_left):
            now = [(what, slots) for at, what, slots in events if at == batch]
            for what, slots in now:
                if what != "in":
                    getattr(self, what)(slots) if what == "lose" else self.join(*slots)
            self.step([slot for what, slots in now if what == "in" for slot in slots if slot in self.members])
        return sorted(self.seen)

    def all_rows(self):
        return sorted(set(range(self._sizes[0])) - set(self.late))


class Strategy:
    world_size = 6

    def __init__(self, elastic):
        self.elastic = elastic


class Elastic:
    """What a `Part` asks about the members."""

    def __init__(self, job, slot):
        self._job, self._slot, self.is_joining = job, slot, False

    @property
    def generation(self):
        return -1 if self.is_joining else self._job.generation

    def of_generation(self, generation):
        return (self._slot,) if generation == -1 else tuple(sorted(self._job.history[generation]))

    @property
    def present(self):
        return self.of_generation(self.generation)

    @property
    def share_of_data(self):
        return self.present.index(self._slot), len(self.present)


@pytest.mark.parametrize("shuffle", [False, True, "batch"])
@pytest.mark.parametrize(
    "events",
    [
        [],
        [(0, "in", [1])],
        [(3, "in", [1])],
        [(3, "in", [0, 2])],
        [(3, "in", [1]), (4, "in", [0])],
        [(5, "in", [1])],  # in the last step: its rows are not seen in this epoch
        [(2, "lose", [1])],  # nothing of it is missing
        [(0, "join", [3])],
        [(2, "join", [3, 4])],
        [(5, "join", [3])],
        [(2, "in", [1]), (4, "join", [1])],
        [(1, "in", [1]), (2, "join", [1])],  # back before the others have taken a step without it
        [(0, "join", [3]), (2, "in", [3]), (3, "join", [3]), (4, "in", [0, 3])],
    ],
)
def test_each_row_is_seen_once(events, shuffle):
    job = Job([0, 1, 2], num_rows=53, batch_size=10, shuffle=shuffle)
    assert job.run_epoch(events) == job.all_rows()
    assert job.run_epoch() == list(range(53))  # and the next epoch is whole


def test_the_same_with_datasets(with_tensorflow):
    job = Job([0, 1, 2], num_rows=53, batch_size=10)
    assert job.run_epoch([(1, "in", [2]), (3, "in", [0]), (4, "join", [2])]) == job.all_rows()
    assert job.run_epoch() == list(range(53))


def test_each_row_is_seen_once_whatever_happens():
    random = np.random.default_rng(7)
    for _ in range(300):
        num_workers, batch_size = int(random.integers(1, 5)), int(random.integers(1, 14))
        job = Job(range(num_workers), int(random.integers(1, 90)), batch_size)
        for _ in range(2):
            events = []
            for _ in range(random.integers(0, 5)):
                what = ["in", "lose", "join"][random.integers(3)]
                slots = random.choice(6, size=random.integers(1, 3), replace=False).tolist()
                events.append((int(random.integers(0, 8)), what, [s for s in slots if s or what == "join"]))
            assert job.run_epoch(events) == job.all_rows(), events


def test_missed_rows_are_spread_over_the_batches_to_come():
    job = Job([0, 1], num_rows=60, batch_size=10, shuffle=False)
    job.begin_epoch()
    job.step(lost=[1])
    sizes = []
    while job.num_left:
        before = len(job.seen)
        job.step()
        sizes.append(len(job.seen) - before)
    assert sizes == [11] * 5 and sorted(job.seen) == list(range(60))


def test_a_joiner_is_told_which_rows_are_still_missed():
    job = Job([0, 1], num_rows=40, batch_size=8, shuffle=False)
    job.begin_epoch()
    job.step(lost=[1])
    job.step()
    assert job.parts[0].state() == {"epoch": 0, "batch": 2, "missed": [5, 6, 7], "iterators": 0}
    job.join(1)
    assert job.parts[1].state() == job.parts[0].state()


def test_a_joiner_numbers_the_epochs_as_the_others_do():
    job = Job([0], num_rows=24, batch_size=8)
    job.run_epoch()
    job.begin_epoch()
    job.step()
    job.join(1)
    assert job.parts[1].state()["epoch"] == 1
    while job.num_left:
        job.step()
    assert sorted(job.seen) == list(range(24))
    assert job.run_epoch() == list(range(24))


@pytest.mark.parametrize("batch_size, known", [(8, shares.Shares.FILLED), (5, shares.Shares.UNKNOWN)])
def test_what_is_promised_of_the_shares_is_the_same_on_all(batch_size, known):
    job = Job([0, 1], num_rows=40, batch_size=batch_size, shuffle=False)
    job.begin_epoch()
    for slots in ([2, 3], [4]):
        job.join(*slots)
        expected = known if batch_size % len(job.members) else shares.Shares.EQUAL
        assert {shares.promised(job.parts[slot].ready()) for slot in job.members} == {expected}
    job.step()
    job.join(5)
    assert {shares.promised(job.parts[slot].ready()) for slot in job.members} == {known}


@pytest.mark.parametrize("num_rows", [24, 20])
def test_a_step_that_was_traced_for_one_share_serves_for_all(num_rows, with_tensorflow):
    arrays = recut.Arrays((np.zeros((num_rows, 3)), None), num_rows, 8, True, [1])
    datasets = [arrays.whole(0, 1, 3), arrays.whole(0, 0, 2), arrays.rest(0, 1, np.array([5, 7, 8]), 0, 2)]
    assert len({str(dataset.element_spec) for dataset in datasets}) == 1
    dataset = tf.data.Dataset.range(num_rows).batch(8, drop_remainder=True)
    data = recut.Recutting(Strategy(None), dataset)
    assert len({str(data.iterator(index, count).element_spec) for index, count in ((1, 3), (0, 2))}) == 1


def test_who_is_missing_from_an_evaluation_is_known():
    job = Job([0, 1], num_rows=16, batch_size=8)
    job.begin_epoch()
    part = job.parts[0]
    part.ready()
    assert not part.is_without(job.generation)
    job.lose([1])
    assert part.is_without(job.generation)
    part.ready()
    assert not part.is_without(job.generation)
