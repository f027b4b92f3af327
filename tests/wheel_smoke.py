"""What wheel_two_tensorflows.sh runs on two workers: an all-reduce, then `model.fit`; every replica must end equal."""

import platform

import keras
import numpy as np
import tensorflow as tf

import tfdist


def main():
    strategy = tfdist.RingAllReduceStrategy()
    rank, world_size = tfdist.rank(), tfdist.world_size()
    group = tfdist.comm.default_group()
    total = group.all_reduce(np.arange(1001, dtype=np.float32) + rank)
    np.testing.assert_array_equal(total, np.arange(1001) * world_size + sum(range(world_size)))

    generator = np.random.default_rng(0)
    x = generator.normal(size=(203, 8)).astype("float32")  # 203: the last batch and the workers' shares are uneven
    y = x @ generator.normal(size=(8, 1)).astype("float32")
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1)])
        model.compile(optimizer="adam", loss="mse")
    losses = model.fit(x, y, batch_size=32, epochs=3, verbose=0).history["loss"]
    if not losses[-1] < losses[0]:
        raise RuntimeError(f"Expected the loss to fall. Received: {losses}.")
    weights = np.concatenate([np.ravel(value) for value in model.get_weights()])
    everybody = group.all_gather(weights[None])
    np.testing.assert_array_equal(everybody, np.repeat(weights[None], world_size, axis=0))
    if tfdist.is_chief():
        print(
            f"PASS: tfdist {tfdist.__version__} from {tfdist.__path__[0]}, {world_size} workers, TensorFlow {tf.__version__}, "
            f"Keras {keras.__version__}, Python {platform.python_version()}, loss {losses[0]:.4f} -> {losses[-1]:.4f}"
        )


if __name__ == "__main__":
    main()
