"""Training on several devices of one process; run by a worker of its own, which splits its CPU first."""

import keras
import numpy as np
import tensorflow as tf


def train(num_devices):
    """Returns what MirroredStrategy computes with our ring, and with TensorFlow's reduction to one device."""
    import tfdist

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices)
    results = {}
    for name, operations in (("ring", tfdist.RingAllReduce()), ("one", tf.distribute.ReductionToOneDevice())):
        keras.utils.set_random_seed(1)
        devices = [f"CPU:{i}" for i in range(num_devices)]
        strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=operations)
        results.update({f"{name} {key}": value for key, value in _use(strategy).items()})
    return results


def _use(strategy):
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((4,), dtype="int32"),
                keras.layers.Embedding(20, 3),
                keras.layers.Flatten(),
                keras.layers.Dense(2),
            ]
        )
        model.compile("adam", "mse")
    x = np.arange(240).reshape(60, 4) % 20
    history = model.fit(x, np.ones((60, 2)), batch_size=12, epochs=2, verbose=0, shuffle=False)
    results = {f"weight {i}": v.numpy() for i, v in enumerate(model.weights)}
    values = strategy.experimental_distribute_values_from_function(
        lambda context: tf.range(7, dtype=tf.float32) + 10.0 * context.replica_id_in_sync_group
    )
    for op in (tf.distribute.ReduceOp.SUM, tf.distribute.ReduceOp.MEAN):
        reduced = strategy.extended.reduce_to(op, values, values)
        for i, part in enumerate(strategy.experimental_local_results(reduced)):
            results[f"{op.value} on device {i}"] = part.numpy()
            results[f"local {op.value} {i}"] = part.device[-5:]
        results[f"{op.value} to one device"] = strategy.reduce(op, values, axis=None).numpy()
    gathered = strategy.run(
        lambda value: tf.distribute.get_replica_context().all_gather(value[None], axis=0), args=(values,)
    )
    for i, part in enumerate(strategy.experimental_local_results(gathered)):
        results[f"gathered on device {i}"] = part.numpy()
    return {**results, "loss": history.history["loss"], "predict": model.predict(x, verbose=0)}
