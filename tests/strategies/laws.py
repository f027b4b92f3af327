"""What must hold on every worker beyond equality with one process; run by workers, checked by the tests."""

import contextlib
import os

import keras
import numpy as np
import tensorflow as tf

from tests.strategies.cases import begin, data, fit, mlp, outcome, state

WITHOUT_SCOPE = ("use_survives_clear_session", "ways_to_travel")


def checks(names, folder):
    """Runs the named laws under one strategy; returns their findings by name."""
    import tfdist

    results = {}
    for name in names:
        begin()
        strategy = tfdist.RingAllReduceStrategy()
        with contextlib.nullcontext() if name in WITHOUT_SCOPE else strategy.scope():
            found = outcome(globals()[name], strategy, os.path.join(folder, name))
        if "error" in found:
            print(name, found["error"], flush=True)
        results.update({f"{name}: {key}": value for key, value in found.items()})
    return results


class SeenRows(keras.layers.Layer):
    """Records the first feature of every row that reaches this worker."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def call(self, x, training=False):
        if training:
            tf.py_function(lambda value: self.seen.append(value.numpy().tolist()), [x[:, 0]], [])
        return x


def shuffled_rows(strategy, folder):
    """The rows that this worker has seen in each of three epochs, by kind of shuffling."""
    x = np.arange(37, dtype="float64")[:, None]
    result = {}
    dataset = tf.data.Dataset.from_tensor_slices((x, x)).shuffle(37).batch(8)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return x[8 * i : 8 * i + 8], x[8 * i : 8 * i + 8]

    kinds = {
        "arrays": dict(x=x, y=x, batch_size=8),
        "batch": dict(x=x, y=x, batch_size=8, shuffle="batch"),
        "dataset": dict(x=dataset),
        "py_dataset": dict(x=Batches()),
    }
    for kind, arguments in kinds.items():
        layer = SeenRows()
        model = keras.Sequential([keras.Input((1,)), layer, keras.layers.Dense(1)])
        model.compile("sgd", "mse", run_eagerly=False)
        ends = []
        callback = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs, ends=ends, layer=layer: ends.append(len(layer.seen))
        )
        model.fit(**arguments, epochs=3, verbose=0, callbacks=[callback])
        starts = [0, *ends[:-1]]
        result[kind] = [[v for batch in layer.seen[a:b] for v in batch] for a, b in zip(starts, ends)]
    return result


def dropout(strategy, folder):
    """The rows that survive dropout, twice from the same seed."""

    def draw():
        keras.utils.set_random_seed(11)
        inputs = keras.Input((64,))
        model = keras.Model(inputs, keras.layers.Dropout(0.5)(inputs))

        @tf.function
        def step(x):
            return model(x, training=True), tf.nn.dropout(x, 0.5)

        outputs = [strategy.run(step, args=(tf.ones((1, 64)),)) for _ in range(2)]
        return [np.asarray(value).reshape(-1).tolist() for value in outputs[0] + outputs[1]]

    return {"local first": draw(), "local again": draw()}


def batch_normalization(strategy, folder):
    """Moving statistics: the mean over rows of what each worker would keep."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(momentum=0.5)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.arange(15, dtype="float64").reshape(5, 3) ** 2
    model.fit(x, x, batch_size=5, epochs=1, verbose=0, shuffle=False)
    moving_mean, moving_variance = model.layers[0].moving_mean.numpy(), model.layers[0].moving_variance.numpy()
    P = strategy.world_size  # noqa: N806
    bounds = np.cumsum([0] + [5 // P + (r < 5 % P) for r in range(P)])
    parts = [x[a:b] for a, b in zip(bounds, bounds[1:])]
    mean = 0.5 * sum(len(p) * p.mean(0) for p in parts) / 5
    variance = 0.5 + 0.5 * sum(len(p) * p.var(0) for p in parts) / 5
    return {"mean": float(abs(moving_mean - mean).max()), "variance": float(abs(moving_variance - variance).max())}


def overflow_on_one_rank(strategy, folder):
    """Mixed precision: one worker's infinite gradient makes every worker skip the step and halve the scale."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=1024.0)
        model.compile(optimizer, "mse")
        x = np.ones((4, 2), "float32")
        x[-1] = 30000.0  # overflows float16 on the last worker only
        model.fit(x, np.ones((4, 1)), batch_size=4, epochs=1, verbose=0, shuffle=False)
        after_overflow = [v.numpy() for v in model.weights], float(optimizer.dynamic_scale.numpy())
        x[-1] = 1.0
        model.fit(x, np.ones((4, 1)), batch_size=4, epochs=1, verbose=0, shuffle=False)
        weights = [v.numpy() for v in model.weights]
        return {
            "scale": after_overflow[1],
            "kernel": after_overflow[0][0],
            "iterations": int(optimizer.iterations.numpy()),
            "later kernel": weights[0],
            "later scale": float(optimizer.dynamic_scale.numpy()),
        }
    finally:
        keras.config.set_dtype_policy("float64")


def saving(strategy, folder):
    """Every way of saving writes once and can be loaded at once by everybody."""
    os.makedirs(folder, exist_ok=True)
    model = mlp()
    path = os.path.join(folder, "{epoch}.keras")
    csv = os.path.join(folder, f"log-{strategy.rank}.csv")
    result = fit(
        model,
        "adam",
        callbacks=[
            keras.callbacks.ModelCheckpoint(path),
            keras.callbacks.CSVLogger(csv),
            keras.callbacks.BackupAndRestore(os.path.join(folder, "backup")),
        ],
    )
    model.save(os.path.join(folder, "model.keras"))
    loaded = keras.models.load_model(os.path.join(folder, "model.keras"))
    model.save_weights(os.path.join(folder, "model.weights.h5"))
    other = mlp()
    other.load_weights(os.path.join(folder, "model.weights.h5"))
    model.export(os.path.join(folder, "exported"), verbose=False)
    x, y = data()
    again = loaded.fit(x, y, batch_size=8, epochs=1, verbose=0, shuffle=False)
    exported = tf.saved_model.load(os.path.join(folder, "exported"))
    served = exported.serve(x)
    if strategy.is_chief:
        model.save(os.path.join(folder, "by the chief.keras"))
    return {
        "equal": all(bool((a.numpy() == b.numpy()).all()) for a, b in zip(model.weights, other.weights)),
        "loss": result["history"]["loss"],
        "again": again.history["loss"],
        "served": float(np.abs(served.numpy() - model.predict(x, verbose=0)).max()),
        "local csv": os.path.exists(csv),
        "local files": sorted(os.listdir(folder)),
    }


def restored(strategy, folder):
    """BackupAndRestore goes on where a failed fit stopped."""
    x, y = data()

    class Fails(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def callbacks():
        return [keras.callbacks.BackupAndRestore(os.path.join(folder, "backup"))]

    model = mlp()
    model.compile("adam", "mse")
    try:
        model.fit(x, y, batch_size=8, epochs=4, verbose=0, shuffle=False, callbacks=[*callbacks(), Fails()])
    except KeyboardInterrupt:
        pass
    strategy.agree("after the failure", {})
    fresh = mlp()
    fresh.compile("adam", "mse")
    history = fresh.fit(x, y, batch_size=8, epochs=4, verbose=0, shuffle=False, callbacks=callbacks())
    keras.utils.set_random_seed(7)
    straight = mlp()
    straight.compile("adam", "mse")
    straight.fit(x, y, batch_size=8, epochs=4, verbose=0, shuffle=False)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(fresh.get_weights(), straight.get_weights()))
    return {"epochs": history.epoch, "difference": difference, **state(fresh)}


def use_survives_clear_session(strategy, folder):
    import tfdist

    chosen = tfdist.use("ring")
    try:
        keras.utils.clear_session()
        model = mlp()
        result = fit(model, "sgd", epochs=1)
        return {"kept": tf.distribute.get_strategy() is chosen, "loss": result["history"]["loss"]}
    finally:
        tf.distribute.experimental_set_strategy(None)
        from tfdist.strategies import keras_adapter

        keras_adapter.keep_after_clear_session(None)


def callbacks(strategy, folder):
    from tfdist.callbacks import AverageMetrics, BroadcastInitialState, LearningRateWarmup

    model = mlp()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    for variable in model.weights:
        variable.assign(variable + strategy.rank)
    rates = []

    class Own(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["mine"] = float(strategy.rank)

        def on_train_batch_end(self, batch, logs=None):
            rates.append(float(self.model.optimizer.learning_rate.numpy()))

    x, y = data(32)
    history = model.fit(
        x, y, batch_size=8, epochs=3, verbose=0, shuffle=False,
        callbacks=[BroadcastInitialState(), LearningRateWarmup(2), Own(), AverageMetrics(["mine"])],
    )  # fmt: skip
    return {"mine": history.history["mine"], "rates": rates, **state(model)}


def differing_weights(strategy, folder):
    from tfdist import errors

    model = mlp()
    model.compile("sgd", "mse")
    model.layers[0].kernel.assign(model.layers[0].kernel + strategy.rank)
    x, y = data()
    try:
        model.fit(x, y, verbose=0)
    except errors.MismatchError as error:
        return {"local message": str(error)}
    return {"local message": ""}


def refusals(strategy, folder):
    from tfdist import errors

    model = mlp()
    x, y = data()
    messages = []
    model.compile("sgd", "mse", jit_compile=True)
    for action in (
        lambda: model.fit(x, y, verbose=0),
        lambda: keras.optimizers.SGD().apply([tf.zeros(3)], [tf.Variable(tf.zeros(3))]),
    ):
        try:
            action()
            messages.append("")
        except errors.ConfigurationError as error:
            messages.append(str(error))
    return {"messages": messages}


def unknown_length(strategy, folder):
    """The end of data of unknown length finds every worker after the same step."""
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dropout(0.5), keras.layers.Dense(3)])
    model.compile("adam", "mse")
    dataset = tf.data.Dataset.from_tensor_slices(data()).batch(8).filter(lambda *_: True)
    seen = []
    for _ in range(5):
        model.fit(dataset, epochs=2, verbose=0)
        seen.append(int(model.optimizer.iterations.numpy()))
    return {"iterations": seen, **state(model)}


def static_single_rows(strategy, folder):
    """Batches whose shape says that some workers get nothing."""
    model = mlp()
    model.compile("adam", "mse", metrics=["mae"])
    dataset = tf.data.Dataset.from_tensor_slices(data(6)).batch(1, drop_remainder=True)
    history = model.fit(dataset, epochs=2, verbose=0)
    return {"loss": history.history["loss"], "rows": len(model.predict(dataset, verbose=0)), **state(model)}


def differing_arguments(strategy, folder):
    from tfdist import errors

    model = mlp()
    model.compile("sgd", "mse")
    x, y = data()
    messages = []
    for arguments in ({"epochs": 1 + strategy.rank}, {"batch_size": 8 + strategy.rank}):
        try:
            model.fit(x, y, verbose=0, **arguments)
        except errors.MismatchError as error:
            messages.append(str(error))
    if strategy.rank:
        x, y = x[:-1], y[:-1]
    try:
        model.fit(x, y, verbose=0)
    except errors.MismatchError as error:
        messages.append(str(error))
    return {"local messages": messages}


def ways_to_travel(strategy, folder):
    """The weights after training with every all-reduce, buckets of all sizes, and gradients that travel narrowed."""
    import tfdist
    from tfdist.collectives import ALL_REDUCE

    def train(**arguments):
        keras.utils.set_random_seed(3)
        with tfdist.RingAllReduceStrategy(strategy.worker_group, **arguments).scope():
            model = mlp(units=512)  # the kernels are large enough to be reduced where they lie
            x, y = data(64, features=5)
            model.compile("sgd", "mse", jit_compile=False)
            start = model.get_weights()
            model.fit(x, y, batch_size=16, epochs=2, verbose=0, shuffle=False)
            return [after - before for before, after in zip(start, model.get_weights())]

    moved = {f"algorithm {name}": train(algorithm=name) for name in ALL_REDUCE}
    moved.update({f"bucket_bytes {size}": train(bucket_bytes=size) for size in (1, 3000, 1 << 30)})
    keras.config.set_dtype_policy("float32")
    try:
        ways = {"as it is": {}, "as bfloat16": {"wire_dtype": "bfloat16"}, "as float16": {"wire_dtype": "float16"}}
        moved.update({f"float32 {way}": train(**arguments) for way, arguments in ways.items()})
    finally:
        keras.config.set_dtype_policy("float64")
    messages = []
    for argument in ({"wire_dtype": "int8"}, {"algorithm": "star"}, {"bucket_bytes": 0}):
        try:
            tfdist.RingAllReduceStrategy(strategy.worker_group, **argument)
        except tfdist.errors.ConfigurationError as error:
            messages.append(str(error))
    return {
        "moved": {way: np.concatenate([part.ravel() for part in parts]).tolist() for way, parts in moved.items()},
        "messages": messages,
    }


def two_threads(strategy, folder):
    """Two models trained by two threads of each worker at once."""
    import threading

    outcome = {}
    models = {}
    for name in ("a", "b"):
        models[name] = mlp()
    x, y = data()
    for model in models.values():
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)

    def step_all(name):
        model = models[name]

        @tf.function
        def step(inputs, targets):
            def replica(a, b):
                with tf.GradientTape() as tape:
                    loss = tf.nn.compute_average_loss(tf.reduce_mean((model(a) - b) ** 2, -1), global_batch_size=8)
                model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
                return loss

            return strategy.run(replica, args=(inputs, targets))

        for inputs, targets in tf.data.Dataset.from_tensor_slices((x[:32], y[:32])).batch(4):
            step(inputs, targets)
        outcome[name] = model.weights[0].numpy().tolist()

    threads = [threading.Thread(target=step_all, args=(name,)) for name in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return {"weights": [outcome[name] for name in sorted(outcome)]}
