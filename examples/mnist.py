"""Trains a small convolutional network on real 28x28 images with `model.fit`.

One process, or two workers, with the same script:

    python examples/mnist.py
    tfdist run -n 2 examples/mnist.py --strategy ring
"""

import argparse
import statistics
import time

import keras

import tfdist
from tfdist.data.images import load_images


class Stopwatch(keras.callbacks.Callback):
    """Seconds of every epoch's training, validation left out."""

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_test_begin(self, logs=None):
        self.seconds.append(time.perf_counter() - self.start)


def make_model():
    layers = [
        keras.Input((28, 28), dtype="uint8"),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Reshape((28, 28, 1)),
        keras.layers.Conv2D(16, 5, strides=2, padding="same", activation="relu"),
        keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(10),
    ]
    return keras.Sequential(layers)


def parse_arguments(export):
    parser = argparse.ArgumentParser(description="Trains on MNIST-type images.")
    parser.add_argument("--strategy", choices=["mirrored", "ring", "async", "sync", "bounded"], default="ring")
    parser.add_argument("--epochs", type=int, help="default: 6, or 25 for the small sets")
    parser.add_argument("--batch-size", type=int, default=128, help="rows of all workers together (%(default)s)")
    parser.add_argument("--export", default=export, help="folder of the SavedModel (default: %(default)s)")
    return parser.parse_args()


def main():
    args = parse_arguments(export="mnist_saved_model/1")
    (x, y), test, name = load_images()
    epochs = args.epochs or (6 if len(x) > 20_000 else 25)
    keras.utils.set_random_seed(1)

    strategy = tfdist.strategy(args.strategy)  # the one line that chooses the distributed algorithm
    # Asynchronous strategies, where one replica makes an update, make one of each worker's share.
    batch_size = args.batch_size // tfdist.world_size() if strategy.num_replicas_in_sync == 1 else args.batch_size
    with strategy.scope():
        model = make_model()
        schedule = keras.optimizers.schedules.CosineDecay(2e-3, epochs * -(-len(x) // batch_size))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=keras.optimizers.Adam(schedule), loss=loss, metrics=["accuracy"])
    watch = Stopwatch()
    model.fit(x, y, batch_size=batch_size, epochs=epochs, validation_data=test, callbacks=[watch], verbose=2)

    _, accuracy = model.evaluate(*test, batch_size=500, verbose=0)
    model.export(args.export)  # every rank calls it, the chief writes
    if tfdist.is_chief():
        rate = len(x) / statistics.median(watch.seconds[1:] or watch.seconds)  # the first also builds graphs
        print(f"data: {name}, {len(x)} images; strategy: {args.strategy}; workers: {tfdist.world_size()}")
        print(f"test accuracy: {accuracy:.4f}; throughput: {rate:.0f} images/s; exported to {args.export}")


if __name__ == "__main__":
    main()
