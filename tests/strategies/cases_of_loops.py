"""Hand-written training loops."""

import keras
import tensorflow as tf

from tests.strategies.case_tools import case, data, mlp, state


def loop(scale, batch_size=8, drop_remainder=False):
    """A hand-written loop; `scale` says how the loss is divided."""
    strategy = tf.distribute.get_strategy()
    model = mlp()
    optimizer = keras.optimizers.Adam(0.01)
    mae = keras.metrics.MeanAbsoluteError()
    x, y = data()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size, drop_remainder)
    dataset = strategy.experimental_distribute_dataset(dataset)
    keras_loss = keras.losses.MeanSquaredError()

    def step(inputs, targets):
        with tf.GradientTape() as tape:
            predictions = model(inputs, training=True)
            rows = tf.reduce_mean(tf.square(predictions - targets), axis=-1)
            if scale == "global":
                loss = tf.nn.compute_average_loss(rows, global_batch_size=batch_size)
            elif scale == "replicas":
                loss = tf.reduce_mean(rows) / strategy.num_replicas_in_sync
            elif scale == "keras":
                loss = keras_loss(targets, predictions)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        mae.update_state(targets, predictions)
        return loss

    @tf.function
    def in_graph(inputs, targets):
        return strategy.reduce("SUM", strategy.run(step, args=(inputs, targets)), axis=None)

    nested = tf.function(step)
    losses = []
    for epoch in range(3):
        for inputs, targets in dataset:
            if epoch == 1:
                losses.append(strategy.reduce("SUM", strategy.run(nested, args=(inputs, targets)), axis=None))
            else:
                losses.append(in_graph(inputs, targets))
    return {**state(model), "losses": [float(loss) for loss in losses], "mae": float(mae.result())}


@case
def loop_with_global_batch_size():
    return loop("global")


@case
def loop_divided_by_replicas():
    return loop("replicas", batch_size=6, drop_remainder=True)


@case
def loop_with_keras_loss():
    return loop("keras", batch_size=6, drop_remainder=True)
