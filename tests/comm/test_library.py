"""A missing or broken native library is explained."""

import shutil

import pytest

from tfdist.comm import library
from tfdist.errors import ConfigurationError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDIST_NATIVE_DIR", str(tmp_path))
    library.core.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    library.core.cache_clear()


def test_missing(folder):
    with pytest.raises(ConfigurationError, match="does not exist.*install g\\+\\+.*pip install"):
        library.core()


def test_damaged(folder):
    (folder / f"libtfdist_core{library.SUFFIX}").write_bytes(b"not a library")
    with pytest.raises(
        ConfigurationError,
        match="(invalid ELF|file too short|too small|slice is not valid).*built for another machine or damaged",
    ):
        library.core()


def test_of_another_version(folder, monkeypatch):
    shutil.copy(library.FOLDER / f"libtfdist_core{library.SUFFIX}", folder)
    monkeypatch.setitem(library._SIGNATURES, "tfdist_from_the_future", (None, []))
    with pytest.raises(ConfigurationError, match="lacks tfdist_from_the_future"):
        library.core()
