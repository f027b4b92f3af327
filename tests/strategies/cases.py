"""Training runs that workers execute and one process repeats as the reference."""

import keras
import numpy as np
import tensorflow as tf


def data(rows=37, features=5, outputs=3, seed=0):
    """Returns closed-form inputs and targets, every row distinct."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, features))
    y = np.tanh(x @ generator.normal(size=(features, outputs))) + 0.1 * generator.normal(size=(rows, outputs))
    return x, y


def weights_of(model):
    return {f"w{i}": v.numpy() for i, v in enumerate(model.weights)}


def plain(optimizer="sgd", epochs=3):
    import tfdist

    keras.config.set_floatx("float64")
    keras.utils.set_random_seed(7)
    strategy = tfdist.RingAllReduceStrategy()
    with strategy.scope():
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(3)])
        model.compile(optimizer, "mse", metrics=["mae"])
    x, y = data()
    history = model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, validation_data=(x[:9], y[:9]))
    return {**weights_of(model), "history": history.history}
