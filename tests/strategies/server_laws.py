"""What must hold on every worker of a strategy with parameter servers; run by workers, checked by the tests."""

import os

import keras
import numpy as np
import tensorflow as tf

from tests.strategies.case_tools import begin, data, mlp, outcome
from tests.strategies.laws import SeenRows


def checks(names, folder, **arguments):
    """Runs the named laws, each under a strategy of its own; returns their findings by name."""
    import tfdist

    results = {}
    for name in names:
        begin()
        strategy = tfdist.strategy(**arguments)
        with strategy.scope():
            found = outcome(globals()[name], strategy, os.path.join(folder, name))
        strategy.barrier("the law is tried")
        strategy.close()
        if "error" in found:
            print(name, found["error"], flush=True)
        results.update({f"{name}: {key}": value for key, value in found.items()})
    return results


def everything(model):
    """Returns all that a worker holds of a model and its optimizer, as one vector."""
    return np.concatenate(
        [np.ravel(np.asarray(v.numpy(), np.float64)) for v in [*model.weights, *model.optimizer.variables]]
    )


def training(strategy, folder):
    """The rows that this worker has trained on, and what it holds at the end."""
    x = np.arange(61, dtype="float64")[:, None]
    layer = SeenRows()
    model = keras.Sequential([keras.Input((1,)), layer, keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    ends = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(len(layer.seen)))
    history = model.fit(x, x, batch_size=4, epochs=3, verbose=0, callbacks=[note], validation_data=(x[:9], x[:9]))
    starts = [0, *ends[:-1]]
    return {
        "local rows": [[v for batch in layer.seen[a:b] for v in batch] for a, b in zip(starts, ends)],
        "history": [history.history[key] for key in sorted(history.history)],
        "state": everything(model),
        "iterations": int(model.optimizer.iterations.numpy()),
        "replicas": strategy.num_replicas_in_sync,
        "evaluated": model.evaluate(x, x, verbose=0),
        "predicted": model.predict(x, verbose=0).ravel().tolist(),
        "local pushes": strategy.optimizers()[0].store.summaries()[0]["workers"][str(strategy.rank)]["pushes"],
    }


def statistics(strategy, folder):
    """Batch normalization: all hold the same moving statistics, near those of the data."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(momentum=0.9), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.random.default_rng(0).normal(5.0, 1.0, size=(512, 3))
    model.fit(x, x[:, :1], batch_size=8, epochs=4, verbose=0)
    return {"mean": model.layers[0].moving_mean.numpy().tolist(), "state": everything(model)}


def saving(strategy, folder):
    """Files hold the global parameters and the optimizer's state, in the middle of fit and after it."""
    os.makedirs(folder, exist_ok=True)
    model = mlp()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x, y = data(64)
    path = os.path.join(folder, "{epoch}.keras")
    epochs = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(model.get_weights()))
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[keras.callbacks.ModelCheckpoint(path), note])
    strategy.barrier("files are there")
    first = keras.models.load_model(path.format(epoch=1))
    last = keras.models.load_model(path.format(epoch=2))
    model.export(os.path.join(folder, "exported"), verbose=False)
    exported = tf.saved_model.load(os.path.join(folder, "exported"))
    served = exported.serve(x)
    again = last.fit(x, y, batch_size=4, epochs=1, verbose=0)  # goes on from the saved state
    moments = [v for v in first.optimizer.variables if "momentum" in v.path]
    return {
        "first": float(max(np.abs(a - b).max() for a, b in zip(first.get_weights(), epochs[0]))),
        "last loss": again.history["loss"],
        "moved": bool(all(np.abs(v.numpy()).max() > 0 for v in moments)) and len(moments) == 4,
        "iterations": [int(first.optimizer.iterations.numpy()), int(last.optimizer.iterations.numpy())],
        "served": float(np.abs(served.numpy() - model.predict(x, verbose=0)).max()),
    }


def stopping(strategy, folder):
    """A stop of any one worker, at a batch or at an epoch's end, stops all."""
    model = mlp()
    model.compile("sgd", "mse")
    x, y = data(64)

    class Stop(keras.callbacks.Callback):
        def __init__(self, epoch, batch=None):
            super().__init__()
            self.where = epoch, batch
            self.epoch = None

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            if self.where[1] is not None and strategy.rank == 1 and self.epoch == self.where[0]:
                self.model.stop_training = True

        def on_epoch_end(self, epoch, logs=None):
            if self.where == (epoch, None) and strategy.rank == 1:
                self.model.stop_training = True

    at_end = model.fit(x, y, batch_size=4, epochs=5, verbose=0, callbacks=[Stop(1)])
    early = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=100.0)
    stopped = model.fit(x, y, batch_size=4, epochs=5, verbose=0, callbacks=[early])
    return {"epochs": [len(at_end.epoch), len(stopped.epoch)], "state": everything(model)}


def table(strategy, folder):
    """An embedding travels as touched rows, and all hold the whole table at the end."""
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int64"),
            keras.layers.Embedding(20_000, 16),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x = np.random.default_rng(0).integers(0, 20_000, size=(256, 4))
    start = model.layers[0].embeddings.numpy()
    strategy_bytes = _bytes(strategy)
    model.fit(x, np.ones((256, 1)), batch_size=8, epochs=1, verbose=0)
    moved = _bytes(strategy)
    model.fit(x, np.ones((256, 1)), batch_size=8, epochs=1, verbose=0)
    table = model.layers[0].embeddings.numpy()
    untouched = np.setdiff1d(np.arange(20_000), x)
    return {
        "untouched": bool((table[untouched] == start[untouched]).all()),
        "touched": bool((table[np.unique(x)] != start[np.unique(x)]).any(axis=1).all()),
        "table bytes": int(table.nbytes),
        "moved bytes": _bytes(strategy) - moved if strategy_bytes is not None else 0,
        "state": everything(model),
    }


def _bytes(strategy):
    if not strategy.optimizers():
        return 0
    records = [row for s in strategy.optimizers()[0].store.summaries() for row in s["workers"].values()]
    return sum(row["bytes_received"] + row["bytes_sent"] for row in records)


def hosted(strategy, folder):
    """An optimizer without a native rule, and one of the user's own, train as themselves."""
    from tests.strategies.own_optimizer import Halving

    found = {}
    for optimizer in (keras.optimizers.Muon(0.01), Halving(0.1)):
        model = mlp()
        model.compile(optimizer, "mse")
        x, y = data(64)
        history = model.fit(x, y, batch_size=4, epochs=3, verbose=0)
        found[type(optimizer).__name__] = [history.history["loss"], int(model.optimizer.iterations.numpy())]
        found[f"state of {type(optimizer).__name__}"] = everything(model)
    return found


def loop(strategy, folder):
    """A training loop of the user's own; `synchronize` brings all to the same place."""
    model = mlp()
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    x, y = data(64)
    dataset = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices((x, y)).batch(4))

    @tf.function
    def step(inputs, targets):
        def replica(a, b):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(a) - b) ** 2)
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
            return loss

        return strategy.run(replica, args=(inputs, targets))

    batches = 0
    for _ in range(2):
        for inputs, targets in dataset:
            step(inputs, targets)
            batches += 1
        strategy.synchronize()
    return {
        "local batches": batches,
        "iterations": int(optimizer.iterations.numpy()),
        "weights": np.concatenate([w.ravel() for w in model.get_weights()]),
    }


def not_finite(strategy, folder):
    """NaN on one worker is an error there; nothing of it is applied."""
    from tfdist import errors

    model = mlp()
    model.compile("sgd", "mse", run_eagerly=False)
    x, y = data(64)
    model.fit(x, y, batch_size=4, epochs=1, verbose=0)
    before = model.get_weights()
    x[:] = np.nan
    message = ""
    try:
        model.fit(x, y, batch_size=4, epochs=1, verbose=0)
    except errors.NonFiniteGradientError as error:
        message = str(error)
    strategy.barrier("both have failed")
    optimizer = strategy.optimizers()[0]
    optimizer.fetch_parameters()
    same = all((a == b).all() for a, b in zip(before, model.get_weights()))
    return {"local message": message, "same": bool(same)}


def differing_models(strategy, folder):
    from tfdist import errors

    model = mlp(units=8)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9 if strategy.rank else 0.5), "mse")
    try:
        model.fit(*data(64), batch_size=4, epochs=1, verbose=0)
    except errors.MismatchError as error:
        return {"local message": str(error)}
    return {"local message": ""}
