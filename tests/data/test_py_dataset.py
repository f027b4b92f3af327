import keras

from tfdist.data.py_dataset import SharedOrder


class Batches(keras.utils.PyDataset):
    ended = 0

    def __len__(self):
        return 9

    def __getitem__(self, i):
        return i

    def on_epoch_end(self):
        self.ended += 1


def test_workers_draw_the_same_order_anew_each_epoch():
    workers = [SharedOrder(Batches(), [4, 1]) for _ in range(2)]
    epochs = []
    for _ in range(2):
        first, second = ([dataset[i] for i in range(len(dataset))] for dataset in workers)
        assert first == second
        assert sorted(first) == list(range(9))
        epochs.append(first)
        for dataset in workers:
            dataset.on_epoch_end()
    assert epochs[0] != epochs[1]
    assert workers[0]._dataset.ended == 2
