"""The same network and data as mnist.py, trained by a hand-written loop with `strategy.run`.

Two workers:

    tfdist run -n 2 examples/custom_loop.py --strategy ring
"""

import statistics
import time

import keras
import tensorflow as tf
from mnist import make_model, parse_arguments

import tfdist
from tfdist.data.images import load_images


def make_datasets(strategy, train, test, batch_size):
    x_train, y_train = train
    dataset = tf.data.Dataset.from_tensor_slices((x_train, y_train)).shuffle(len(x_train), seed=1).batch(batch_size)
    test_dataset = tf.data.Dataset.from_tensor_slices(test).batch(500)
    return strategy.experimental_distribute_dataset(dataset), strategy.experimental_distribute_dataset(test_dataset)


def make_steps(strategy, model, optimizer, accuracy, batch_size):
    row_losses = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def train_step(images, labels):
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            # Divided by the rows of all replicas: the gradients of the replicas are summed.
            loss = tf.nn.compute_average_loss(row_losses(labels, logits), global_batch_size=batch_size)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        accuracy.update_state(labels, logits)
        return loss

    def test_step(images, labels):
        accuracy.update_state(labels, model(images, training=False))

    @tf.function
    def train(images, labels):
        losses = strategy.run(train_step, args=(images, labels))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    @tf.function
    def test(images, labels):
        strategy.run(test_step, args=(images, labels))

    return train, test


def main():
    args = parse_arguments(export="custom_loop_saved_model/1")
    train_rows, test_rows, name = load_images()
    rows = len(train_rows[0])
    epochs = args.epochs or (6 if rows > 20_000 else 25)
    steps = -(-rows // args.batch_size)
    keras.utils.set_random_seed(1)

    strategy = tfdist.strategy(args.strategy)
    with strategy.scope():
        model = make_model()
        optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, epochs * steps))
        accuracy = keras.metrics.SparseCategoricalAccuracy()
    train, test = make_steps(strategy, model, optimizer, accuracy, args.batch_size)
    train_dataset, test_dataset = make_datasets(strategy, train_rows, test_rows, args.batch_size)

    rates = []
    for epoch in range(epochs):
        start = time.perf_counter()
        accuracy.reset_state()
        loss = sum(train(images, labels) for images, labels in train_dataset) / steps
        if tfdist.is_chief():
            print(f"epoch {epoch + 1}/{epochs}: loss {loss:.4f}, accuracy {accuracy.result():.4f}", flush=True)
        rates.append(rows / (time.perf_counter() - start))

    accuracy.reset_state()
    for images, labels in test_dataset:
        test(images, labels)
    model.export(args.export)
    if tfdist.is_chief():
        rate = statistics.median(rates[1:] or rates)
        print(f"data: {name}, {rows} images; strategy: {args.strategy}; workers: {tfdist.world_size()}")
        print(f"test accuracy: {accuracy.result():.4f}; throughput: {rate:.0f} images/s; exported to {args.export}")


if __name__ == "__main__":
    main()
