"""Trains until it is told to stop, and notes the end of every step. Run by `soak_of_fit.py` under `tfdist run`.

The folder that is its argument holds the notes (`steps-RANK-PID`: seconds since the epoch, epoch), orders of faults
(`order-PID`, read at SIGUSR2), and `stop`: before which epoch the training ends.
"""

import json
import os
import pathlib
import signal
import struct
import sys
import time

import keras
import numpy as np

NUM_ROWS, BATCH, CLASSES = 1920, 96, 4
NOTE = struct.Struct("dd")


class Notes(keras.callbacks.Callback):
    """Notes steps, and ends the training where the folder says so."""

    def __init__(self, folder, rank):
        super().__init__()
        self.folder, self.epoch = folder, 0
        self.file = os.open(folder / f"steps-{rank}-{os.getpid()}", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        os.write(self.file, NOTE.pack(time.time(), self.epoch))

    def on_epoch_end(self, epoch, logs=None):
        stop = self.folder / "stop"
        if stop.exists() and epoch + 1 >= int(stop.read_text()):
            self.model.stop_training = True


def data():
    """Returns `(x, y)`, which a small network learns."""
    generator = np.random.default_rng(7)
    x = generator.normal(size=(NUM_ROWS, 12)).astype(np.float32)
    return x, (x @ generator.normal(size=(12, CLASSES))).argmax(1)


def obey(folder):
    """A fault that is ordered by SIGUSR2 happens at its phase, to this process."""

    def schedule(**fault):
        from tfdist.cluster import variables
        from tfdist.testing import faults
        from tfdist.testing.fault import Fault, to_json

        fault = Fault(
            **fault, rank=variables.integer(os.environ, "TFDIST_RANK"), incarnation=variables.incarnation(os.environ)
        )
        faults.load({**os.environ, "TFDIST_FAULTS": to_json([fault])})

    def load(number, frame):
        schedule(**json.loads((folder / f"order-{os.getpid()}").read_text()))

    schedule(kind="kill", step=10**12)  # `fit` looks for faults only where one is scheduled
    signal.signal(signal.SIGUSR2, load)


def main():
    """Trains; writes what it ends with to `end-RANK.npz`."""
    import tfdist

    folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
    obey(folder)
    keras.utils.set_random_seed(5)
    strategy = tfdist.strategy(name, seed=11)
    with strategy.scope():
        model = keras.Sequential(
            [keras.layers.Input((12,)), keras.layers.Dense(64, activation="tanh"), keras.layers.Dense(CLASSES)]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.02, momentum=0.9), loss, metrics=["accuracy"])
    x, y = data()
    callbacks = [Notes(folder, strategy.rank), tfdist.callbacks.DistributedCheckpoint(folder / "checkpoints", keep=2)]
    model.fit(x, y, batch_size=BATCH, epochs=10**6, verbose=0, callbacks=callbacks, validation_data=(x[:500], y[:500]))
    _, accuracy = model.evaluate(x, y, verbose=0)
    weights = {str(i): v.numpy() for i, v in enumerate(model.weights)}
    np.savez(folder / f"end-{strategy.rank}.npz", accuracy=accuracy, **weights)


if __name__ == "__main__":
    main()
