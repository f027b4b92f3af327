"""A worker that joins later goes on where the others are."""

import numpy as np

from tfdist.data import recut
from tfdist.data.dealer import Dealer, ProcessCounter
from tfdist.data.py_dataset import SharedOrder


def take_all(deal, epoch):
    """Returns the batches of an epoch that are left."""
    batches = []
    while True:
        first, count = deal.next_piece(epoch)
        if not count:
            return batches
        batches += range(first, first + count)


def test_a_dealer_goes_on_with_the_data_set_and_epoch_of_another():
    counter = ProcessCounter()
    early, late = (Dealer(2, rank, counter) for rank in (0, 1))
    early.deal(30)
    deal = early.deal(30, look_first=True)
    assert [take_all(deal, deal.begin()) for _ in range(2)][0] == [0]  # the look
    joiners = late.deal(30, look_first=True)
    joiners.begin()
    assert late.catch_up(*early.place()) == 1 and late.place() == early.place() == (1, 2)
    batches = [take_all(one, one.begin()) for one in (deal, joiners)]
    assert sorted(sum(batches, [])) == list(range(30))
    assert early.deal(3).data_set == late.deal(3).data_set == 2


class Members:
    present, generation, share_of_data, is_joining = (0,), 0, (0, 1), False


class Strategy:
    elastic, world_size = Members, 1


def test_array_data_go_on_with_the_epoch_of_another_worker():
    early, late = (recut.Recutting(Strategy, arrays=recut.Arrays(np.arange(8), 8, 4, True, [3])) for _ in range(2))
    for _ in range(3):
        next(iter(early))
    late.catch_up(early.place())
    assert np.array_equal(next(iter(early)), next(iter(late)))


class Batches:
    workers, use_multiprocessing, max_queue_size, num_batches = 1, False, 1, 50

    def on_epoch_end(self):
        pass


def test_a_shared_order_tells_how_many_epochs_are_over():
    early, late = (SharedOrder(Batches(), [5]) for _ in range(2))
    early.on_epoch_end()
    early.on_epoch_end()
    late.pass_epochs(early.num_epochs - late.num_epochs)
    assert early.num_epochs == 2 and np.array_equal(early._order, late._order)
