"""Trains in float64 on this worker; what it ends with goes into a folder. Run by `tfdist run`, or by a test as the reference."""

import json
import os
import sys
import time

import keras
import numpy as np

NUM_ROWS, BATCH, EPOCHS, STEPS = 640, 32, 4, 20


def data():
    """Returns `(x, y)`."""
    generator = np.random.default_rng(7)
    x = generator.normal(size=(NUM_ROWS, 12))
    return x, (x @ generator.normal(size=(12, 4))).argmax(1)


def make_model():
    """Returns a compiled model; its first weights are the same at every call."""
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [keras.layers.Input((12,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(4)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"])
    return model


def seed():
    """Returns the seed of the order of the data."""
    return 11


class Slow(keras.callbacks.Callback):
    """So that a worker that is started again finds the others at work. What it counts is handed over, its rank is not."""

    def __init__(self, rank):
        super().__init__()
        self.rank, self.count = rank, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.seconds = float(os.environ.get("SLOW", "0")) if epoch == EPOCHS - 2 else 0.0

    def on_train_batch_end(self, batch, logs=None):
        self.count += 1
        time.sleep(self.seconds)


def main():
    import tfdist

    folder, name = sys.argv[1:]
    keras.config.set_floatx("float64")
    strategy = tfdist.strategy(name, seed=seed())
    with strategy.scope():
        model = make_model()
    x, y = data()
    best = keras.callbacks.ModelCheckpoint(f"{folder}/{{epoch}}.keras", save_freq="epoch")
    slow = Slow(strategy.rank)
    history = model.fit(
        x, y, batch_size=BATCH, epochs=EPOCHS, verbose=2, callbacks=[best, slow], validation_data=(x[:99], y[:99])
    )
    found = {f"weight {i}": v.numpy() for i, v in enumerate(model.weights)}
    found.update({f"optimizer {i}": np.asarray(v.numpy()) for i, v in enumerate(model.optimizer.variables)})
    found["predicted"] = model.predict(x[:70], verbose=0)
    found["evaluated"] = np.array(model.evaluate(x[:99], y[:99], verbose=0))
    np.savez(f"{folder}/rank-{strategy.rank}.npz", **found)
    facts = {
        "rank": slow.rank,
        "count": slow.count,
        "history": history.history,
        "members": list(strategy.worker_group.members),
        "chief": strategy.is_chief,
    }
    with open(f"{folder}/rank-{strategy.rank}.json", "w", encoding="utf-8") as file:
        json.dump(facts, file)


def reference(lost_at, slot, count):
    """One process does what `count` workers do who lose `slot` before step `lost_at`; returns the weights."""
    from tfdist.data import permutation, recut

    keras.config.set_floatx("float64")
    model = make_model()
    x, y = data()
    arrays = recut.Arrays((x, y), NUM_ROWS, BATCH, True, [seed(), 1])
    missed, first = np.zeros(0, np.int64), 0
    for step in range(EPOCHS * STEPS):
        epoch, batch = divmod(step, STEPS)
        if batch == 0:
            missed, first = np.zeros(0, np.int64), 0
        order = arrays.order(epoch + 1)  # epoch 0 is what Keras looks at to build the metrics
        rows = arrays.batch_of(order, batch, first, missed)
        if step == lost_at:
            start, stop = permutation.share(len(rows), slot, count)
            missed, first = rows[start:stop], batch + 1
            rows = np.delete(rows, slice(start, stop))
        model.train_on_batch(x[rows], y[rows])
    return {f"weight {i}": v.numpy() for i, v in enumerate(model.weights)}


if __name__ == "__main__":
    main()
