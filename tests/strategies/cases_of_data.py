"""Where rows come from and how they are shared out; what comes back for them."""

import keras
import numpy as np
import tensorflow as tf

from tests.strategies.case_tools import case, data, fit, mlp, state
from tfdist.data import permutation


@case
def predict_and_evaluate():
    model = mlp()
    model.compile("adam", "mse", metrics=["mae"])
    x, y = data()
    result = {"evaluate": model.evaluate(x, y, batch_size=8, verbose=0)}
    result["predict"] = model.predict(x, batch_size=9, verbose=0)
    result["predict on batch"] = model.predict_on_batch(x[:5])
    result["predict again"] = model.predict(x, batch_size=9, verbose=0)
    result["predict dataset"] = model.predict(tf.data.Dataset.from_tensor_slices(x).batch(8), verbose=0)
    result["predict one"] = model.predict(x[:1], verbose=0)
    result["call"] = model(x[:3]).numpy()
    result["test on batch"] = np.array(model.test_on_batch(x[:8], y[:8]))
    result["train on batch"] = np.array(model.train_on_batch(x[:8], y[:8]))
    return {**result, **state(model)}


@case
def datasets():
    model = mlp()
    model.compile("adam", "mse", metrics=["mae"])
    x, y = data()
    train = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(37, seed=3).batch(8)
    history = model.fit(train, epochs=3, verbose=0, validation_data=train.take(2))
    again = model.fit(train.repeat(), epochs=2, steps_per_epoch=3, verbose=0)
    return {**state(model, history), "again": again.history}


@case
def generators():
    def batches():
        x, y = data()
        for start in range(0, 37, 8):
            yield x[start : start + 8], y[start : start + 8]

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return list(batches())[i]

    model = mlp()
    model.compile("adam", "mse")
    history = model.fit(batches(), epochs=1, verbose=0)
    more = model.fit(Batches(), epochs=2, verbose=0, shuffle=False)
    return {**state(model, history), "more": more.history}


def own_dataset(policy):
    """Every worker's own data, of unequal length; the reference has all of it."""
    strategy = tf.distribute.get_strategy()
    rank, world_size = getattr(strategy, "rank", 0), getattr(strategy, "world_size", 1)
    x, y = data(24)
    rows = (
        slice(None) if world_size == 1 else (slice(0, 16) if rank == 0 else slice(16, 24) if rank == 1 else slice(0, 0))
    )
    if policy == "function":
        dataset = strategy.distribute_datasets_from_function(
            lambda _: tf.data.Dataset.from_tensor_slices((x[rows], y[rows])).batch(8 // world_size)
        )
    else:
        dataset = tf.data.Dataset.from_tensor_slices((x[rows], y[rows])).batch(8)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        dataset = dataset.with_options(options)
    return dataset


@case
def local_uneven_shards():
    """Every row is seen once an epoch: at learning rate 0 the logs are those of one process."""
    result = {}
    for policy in ("off", "function"):
        model = mlp()
        model.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mae"])
        dataset = own_dataset(policy)
        history = model.fit(dataset, epochs=2, verbose=0)
        result.update({f"{policy} history": history.history})
        result[f"{policy} evaluate"] = model.evaluate(own_dataset(policy), verbose=0)
    return result


def normalized(units=8):
    """A model with state of every kind that replicas make equal, and a layer that shares its statistics."""
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(units, activation="tanh"),
            keras.layers.BatchNormalization(synchronized=True),
            keras.layers.Dense(3),
        ]
    )


@case
def equal_shares():
    return fit(normalized(), keras.optimizers.SGD(0.1), rows=36, batch_size=24, validation_data=data(30, seed=1))


@case
def equal_shares_of_a_dataset():
    x, y = data(36)
    model = normalized()
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(12, drop_remainder=True)
    history = model.fit(dataset, epochs=3, verbose=0, validation_data=dataset)
    return {**state(model, history), "evaluate": model.evaluate(dataset, verbose=0)}


@case
def equal_shares_run_eagerly():
    return fit(mlp(), "adam", rows=24, batch_size=12, compile_arguments=dict(run_eagerly=True))


@case
def equal_shares_in_a_nested_function():
    """A function that a step calls is traced once and then runs on data of other shares too."""
    model = Nested(mlp())
    x, y = data(31)
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
    history = [model.fit(x[:n], y[:n], batch_size=12, shuffle=False, verbose=0).history for n in (24, 31, 24)]
    return {**state(model), "history": history}


class Nested(keras.Model):
    """Trains in a `tf.function` of its own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x):
        return self.inner(x)

    def train_step(self, batch):
        return self.nested_step(batch)

    @tf.function(
        reduce_retracing=True,
        input_signature=[(tf.TensorSpec([None, 5], tf.float64), tf.TensorSpec([None, 3], tf.float64))],
    )
    def nested_step(self, batch):
        return super().train_step(batch)


@case
def unequal_train_on_batch_beside_fit():
    """That fit's data hold equally many rows says nothing about those of train_on_batch."""
    strategy = tf.distribute.get_strategy()
    x, y = data(24)
    results = []

    class Beside(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            start, stop = permutation.share(7, strategy.rank, strategy.world_size)
            self.model.reset_metrics()
            results.append(np.array(self.model.train_on_batch(x[start:stop], y[start:stop])))

    return {**fit(mlp(), "adam", rows=24, batch_size=12, callbacks=[Beside()]), "logs": np.array(results)}
