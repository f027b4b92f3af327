"""What workers run when something is to go wrong."""

import os
import time

import keras
import tensorflow as tf

from tests.strategies.cases import data, mlp


def report(action):
    """Returns the kind and text of what `action` raises, and after how many seconds."""
    start = time.monotonic()
    try:
        action()
    except Exception as error:
        return {"kind": type(error).__name__, "message": str(error), "seconds": time.monotonic() - start}
    return {"kind": "", "message": "", "seconds": time.monotonic() - start}


def different_model():
    import tfdist

    strategy = tfdist.RingAllReduceStrategy()

    def build():
        with strategy.scope():
            mlp(units=8 + strategy.rank)

    return report(build)


def skipped_step():
    import tfdist

    strategy = tfdist.RingAllReduceStrategy()
    with strategy.scope():
        model = mlp()
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)
    x, y = data(8)

    @tf.function
    def step(inputs, targets):
        def replica(a, b):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(a) - b) ** 2) / strategy.num_replicas_in_sync
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

        strategy.run(replica, args=(inputs, targets))

    def train():
        for i in range(6):
            if strategy.rank == 1 and i == 2:
                optimizer.iterations.assign_add(1)  # as if it had taken a step alone
            step(tf.constant(x, tf.float32), tf.constant(y, tf.float32))

    return report(train)


def raises_in_a_callback():
    import tfdist

    strategy = tfdist.RingAllReduceStrategy()
    with strategy.scope():
        model = mlp()
        model.compile("sgd", "mse")

    class Fails(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if strategy.rank == 1 and batch == 1:
                os._exit(3)

    x, y = data()
    return report(lambda: model.fit(x, y, batch_size=8, epochs=20, verbose=0, callbacks=[Fails()]))
