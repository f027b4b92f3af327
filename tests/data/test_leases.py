"""Pieces on lease: what a lost worker held is dealt again, each batch once. Workers are turns of one thread, or threads."""

import collections
import logging
import threading
import time

import pytest

from tests.data.lease_job import Job, together
from tfdist.data import leased_epoch, pieces


class Worker:
    """Trains on one batch after the other; `trained` are those that it has come to the end of."""

    def __init__(self, deal, own, is_stream=False):
        self.deal, self.epoch, self.dealer = deal, deal.begin(), own
        self.trained, self._piece, self._has_all, self._is_stream = [], [], False, is_stream

    def again(self):
        """Returns this worker in the next epoch."""
        return Worker(self.deal, self.dealer, self._is_stream)

    def begin_batch(self):
        """Returns the batch that is being trained on from now on, None at the end."""
        if not self._has_all:
            self.deal.finished(self.epoch, len(self.trained))
        if not self._piece:
            first, count = self._take()
            self._piece = list(range(first, first + count))
        return self._piece.pop(0) if self._piece else None

    def _take(self):
        taken = self.deal.next_piece(self.epoch) if not self._has_all else (0, 0)
        self._has_all = taken == (0, 0)
        return self.deal.rest(self.epoch) if self._has_all and not self._is_stream else taken

    def step(self):
        batch = self.begin_batch()
        if batch is not None:
            self.trained.append(batch)
        return batch

    def run(self):
        while self.step() is not None:
            pass
        return self.trained


def worker_of(job, rank, num_batches, incarnation=0, **options):
    own = job.dealer(rank, incarnation)
    return Worker(own.deal(num_batches, **options), own, **options)


@pytest.fixture
def job():
    made = []

    def make(*arguments, **options):
        made.append(Job(*arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("num_batches", [0, 1, 2, 3, 31, 200])
@pytest.mark.parametrize("world_size", [2, 3])
def test_every_batch_is_trained_on_once(job, world_size, num_batches):
    one = job(world_size)
    workers = [worker_of(one, rank, num_batches) for rank in range(world_size)]
    for _ in range(2):
        trained = together(*[worker.run for worker in workers])
        assert sorted(sum(trained, [])) == list(range(num_batches))
        assert all(own for own in trained[: min(world_size, num_batches)])
        workers = [worker.again() for worker in workers]


@pytest.mark.parametrize("num_steps", [1, 2, 4, 5, 9, 40])
def test_what_a_lost_worker_held_is_dealt_again_but_for_what_it_had_finished(job, num_steps, caplog):
    one = job(2)
    survivor, lost = worker_of(one, 0, 100), worker_of(one, 1, 100)
    for _ in range(num_steps):
        lost.step()
    survivor.step()
    in_training = lost.begin_batch()
    one.lose(1)
    with caplog.at_level(logging.INFO, "absl"):
        assert sorted(survivor.run() + lost.trained) == list(range(100))
    assert in_training in survivor.trained
    assert f"rank 1 was lost: batch {in_training} of dealt/data/0/0" in caplog.text
    assert caplog.text.count("rank 1 may have done so already") == 1


def test_several_survivors_share_what_is_left(job):
    one = job(4)
    *survivors, lost = [worker_of(one, rank, 1000) for rank in range(4)]
    for _ in range(3):
        lost.step()
    lost.begin_batch()
    one.lose(3)
    trained = together(*[worker.run for worker in survivors])
    assert sorted(sum(trained, lost.trained)) == list(range(1000))


def test_a_worker_that_took_over_is_lost_as_well(job):
    one = job(3)
    last, second, first = [worker_of(one, rank, 60) for rank in range(3)]
    first.step()
    first.begin_batch()
    one.lose(2)
    finished = threading.Event()

    def train_until_it_takes_over():
        while second.step() not in range(*first_piece):
            pass
        one.lose(1)
        finished.set()

    first_piece = (first.trained[0] + 1, first.trained[0] + 3)
    last.step()
    together(train_until_it_takes_over, lambda: finished.wait(30))
    in_training = second.trained.pop()  # it did not come to tell
    assert in_training in range(*first_piece)
    assert sorted(last.run() + second.trained + first.trained) == list(range(60))


@pytest.mark.parametrize("how", ["dead", "excluded"])
def test_one_that_was_lost_before_it_began(job, how):
    one = job(2)
    one.client.set(f"elastic/{how}/1", b"0")
    assert sorted(worker_of(one, 0, 50).run()) == list(range(50))


def test_one_that_is_lost_while_the_others_wait_for_it_to_begin(job):
    one = job(2)
    worker = worker_of(one, 0, 50)
    waits = threading.Timer(0.3, one.lose, [1])
    waits.start()
    assert sorted(worker.run()) == list(range(50))
    waits.join()


def test_the_end_waits_for_who_still_trains(job):
    one = job(2)
    fast, slow = worker_of(one, 0, 50), worker_of(one, 1, 50)
    slow.step()
    in_training = slow.begin_batch()
    ended = threading.Event()
    waiting = threading.Thread(target=lambda: (fast.run(), ended.set()), daemon=True)
    waiting.start()
    assert not ended.wait(0.5)
    slow.trained.append(in_training)
    slow.run()
    assert ended.wait(10)
    first, count = slow.trained[0], len(slow.trained)
    assert slow.trained == list(range(first, first + count))  # nobody took of what it held
    waiting.join()


def test_free_places_leave_no_gap(job):
    one = job(6, num_initial=2)
    workers = [worker_of(one, rank, 100) for rank in (0, 1)]
    trained = together(*[worker.run for worker in workers])
    assert sorted(sum(trained, [])) == list(range(100))
    one.client.set("elastic/joined/4", b"1")
    workers = [worker.again() for worker in workers]
    own = one.dealer(4, incarnation=1)
    own.go_to(0, 1)
    joiner = Worker(own.deal(100), own)
    assert joiner.epoch == 1
    trained = together(*[worker.run for worker in [*workers, joiner]])
    assert sorted(sum(trained, [])) == list(range(100)) and joiner.trained


def test_a_restarted_worker_takes_its_place_and_loses_nothing_of_its_former_life(job):
    one = job(2)
    survivor, lost = worker_of(one, 0, 100), worker_of(one, 1, 100)
    lost.step()
    lost.begin_batch()
    one.lose(1)
    one.client.set("elastic/joined/1", b"1")
    again = worker_of(one, 1, 100, incarnation=1)
    trained = together(survivor.run, again.run)
    assert sorted(sum(trained, lost.trained)) == list(range(100))


def test_nobody_waits_for_who_left_an_epoch(job, caplog):
    one = job(2)
    worker, left = worker_of(one, 0, 100), worker_of(one, 1, 100)
    left.step()
    rest = [left.begin_batch()]
    left.dealer.leave()
    trained = worker.run()
    assert caplog.text == ""
    while rest[-1] is not None:  # it may go on all the same
        rest.append(left.begin_batch())
    assert sorted(trained + left.trained + rest[:-1]) == list(range(100))


def test_a_wait_has_an_end(job, caplog):
    one = job(2, timeout=0.5)
    worker, idle = worker_of(one, 0, 40), worker_of(one, 1, 40)
    idle.step()
    worker.run()
    assert "ends without the batches that others hold. Waited 0.5 s for rank 1" in caplog.text
    assert not set(worker.trained) & set(idle.trained)


def test_nobody_waits_for_who_goes_on_to_the_next_epoch(job, caplog):
    one = job(2)
    worker, early = worker_of(one, 0, 100), worker_of(one, 1, 100)
    early.step()
    early.again()
    assert 80 < len(worker.run()) < 100
    assert caplog.text == ""  # nor was there a wait that had an end


@pytest.mark.parametrize("num_batches", [100, None])
def test_a_stream_says_what_is_left_out(job, num_batches, caplog):
    one = job(3)
    *survivors, lost = [worker_of(one, rank, num_batches, is_stream=True) for rank in range(3)]
    lost.step()
    one.lose(2)
    if num_batches is None:
        assert survivors[0].step() == 0
        return
    trained = sum([worker.run() for worker in survivors], [])
    first, count = pieces.pieces(100, 3)[2]
    for worker in survivors:
        worker.dealer.leave()
    assert sorted(trained) == sorted(set(range(100)) - set(range(first, first + count)))
    assert caplog.text.count(f"rank 2 was lost. What it had not trained on of the batches {first} to") == 1


def test_a_stream_gets_its_pieces_in_order_and_leaves_no_gap(job):
    one = job(5, num_initial=2)
    workers = [worker_of(one, rank, 200, is_stream=True) for rank in (0, 1)]
    trained = together(*[worker.run for worker in workers])
    assert all(own == sorted(own) for own in trained)
    assert collections.Counter(sum(trained, [])) == collections.Counter(range(200))


def test_a_lease_is_not_to_be_written_all_the_time(job, monkeypatch):
    one = job(2)
    worker = worker_of(one, 0, 100)
    worker.step()
    monkeypatch.setattr(leased_epoch, "_WRITING_FRACTION", 1e-9)
    monkeypatch.setattr(leased_epoch, "_SELDOM_SECONDS", 1000.0)
    assert worker.deal.finished(worker.epoch, 1) > time.time() + 60  # a round trip takes more than 60 ns
    monkeypatch.setattr(leased_epoch, "_SELDOM_SECONDS", 0.0)
    assert worker.deal.finished(worker.epoch, 1) <= time.time()
