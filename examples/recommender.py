"""Trains user and film embeddings on real ratings with `model.fit`: MovieLens-100k.

One process, or two workers, with the same script:

    python examples/recommender.py
    tfdist run -n 2 examples/recommender.py --strategy async
"""

import argparse

import keras
import numpy as np

import tfdist
from tfdist.data.ratings import load_ratings


def make_model(num_users, num_items, size):
    user, item = keras.Input((), dtype="int32", name="user"), keras.Input((), dtype="int32", name="item")
    user_vector = keras.layers.Embedding(num_users, size)(user)
    item_vector = keras.layers.Embedding(num_items, size)(item)
    user_bias = keras.layers.Embedding(num_users, 1, embeddings_initializer="zeros")(user)
    item_bias = keras.layers.Embedding(num_items, 1, embeddings_initializer="zeros")(item)
    taste = keras.layers.Dot(axes=1)([user_vector, item_vector])
    return keras.Model([user, item], keras.layers.Add()([taste, user_bias, item_bias]))


def parse_arguments():
    parser = argparse.ArgumentParser(description="Trains a recommender on MovieLens-100k.")
    parser.add_argument("--strategy", choices=["mirrored", "ring", "async", "sync", "bounded"], default="async")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=256, help="ratings of a step (ring, sync: of all workers)")
    parser.add_argument("--size", type=int, default=8, help="numbers that describe a user or a film")
    return parser.parse_args()


def main():
    args = parse_arguments()
    (users, items, ratings), (test_users, test_items, test_ratings), name = load_ratings()
    mean = float(ratings.mean())
    keras.utils.set_random_seed(1)

    strategy = tfdist.strategy(args.strategy)  # the one line that chooses the distributed algorithm
    with strategy.scope():
        num_users, num_items = 1 + max(users.max(), test_users.max()), 1 + max(items.max(), test_items.max())
        model = make_model(int(num_users), int(num_items), args.size)
        rmse = keras.metrics.RootMeanSquaredError(name="rmse")
        model.compile(optimizer=keras.optimizers.Adam(2e-3), loss="mse", metrics=[rmse])
    model.fit([users, items], ratings - mean, batch_size=args.batch_size, epochs=args.epochs, verbose=2)

    _, error = model.evaluate([test_users, test_items], test_ratings - mean, batch_size=1000, verbose=0)
    if tfdist.is_chief():
        baseline = float(np.sqrt(np.mean((test_ratings - mean) ** 2)))
        print(f"data: {name}, {len(ratings)} ratings; strategy: {args.strategy}; workers: {tfdist.world_size()}")
        print(f"test RMSE: {error:.4f}; always the mean: {baseline:.4f}")


if __name__ == "__main__":
    main()
