"""Real film ratings for the recommender example: MovieLens-100k, from a Python package that carries it."""

import hashlib
import zipfile

import numpy as np
from absl import logging

from tfdist.data import downloads

_TABLE = "recbole/dataset_example/ml-100k/ml-100k.inter"
_SHA256 = "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"
_TEST_FRACTION = 0.1


def load_ratings():
    """Returns MovieLens-100k, downloading it once: 100,000 ratings of 1,682 films by 943 users, 1997 to 1998.

    A tenth, drawn with a fixed seed, is the test set: most users rated on one day only, so that a split by time would
    ask for users who were never seen. The set comes from the wheel of the Python package `recbole` 1.2.1 (2 MB; it is
    unpacked, not installed) and is cached like the images, see `downloads.load`.

    Terms of the data (GroupLens, University of Minnesota): no commercial or revenue-bearing use without permission;
    acknowledge it: F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM Transactions on
    Interactive Intelligent Systems 5(4), 2015.

    Returns:
      `(train, test, name)`; each part is `(users, items, ratings)`: int32, int32 and float32 arrays of shape `(n,)`.
      Users and items count from 0, ratings are 1 to 5.

    Raises:
      TfdistError: it could not be downloaded; the text has the reason.
    """
    arrays = downloads.load("ratings", SOURCES, _checked)
    order = np.random.default_rng(0).permutation(len(arrays["ratings"]))
    test, train = np.split(order, [int(len(order) * _TEST_FRACTION)])
    name = str(arrays["name"])
    logging.info("Ratings: %s, %d for training and %d for testing.", name, len(train), len(test))
    columns = [arrays[key] for key in ("users", "items", "ratings")]
    return tuple(column[train] for column in columns), tuple(column[test] for column in columns), name


def _from_python_package(scratch):
    with zipfile.ZipFile(downloads.download_wheel(scratch, "recbole==1.2.1")) as wheel:
        data = wheel.read(_TABLE)
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise ValueError(f"{_TABLE} does not have the expected SHA-256")
    table = np.loadtxt(data.decode().splitlines(), skiprows=1)  # user, item, rating, time
    return table[:, 0] - 1, table[:, 1] - 1, table[:, 2]


def _checked(users, items, ratings):
    if not len(users) == len(items) == len(ratings) > 0 or min(users.min(), items.min()) < 0:
        raise ValueError(f"{len(users)} users, {len(items)} items, {len(ratings)} ratings")
    if ratings.min() < 1 or ratings.max() > 5:
        raise ValueError(f"ratings from {ratings.min():g} to {ratings.max():g}")
    return {"users": users.astype(np.int32), "items": items.astype(np.int32), "ratings": ratings.astype(np.float32)}


SOURCES = (("MovieLens-100k", _from_python_package),)
