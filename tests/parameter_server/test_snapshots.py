"""Snapshot files: whole or passed over, few, and gone in the end."""

import os

import numpy as np
import pytest

from tfdist.parameter_server.snapshots import Snapshots

CONTENT = [b"head", bytes(range(256)) * 40]


@pytest.fixture
def snapshots(tmp_path):
    return Snapshots(str(tmp_path / "server"))


def files(snapshots):
    return sorted(os.listdir(snapshots.folder))


def test_the_newest_is_read_and_two_are_kept(snapshots):
    assert snapshots.newest() is None
    for i in range(4):
        snapshots.write([*CONTENT, b"%d" % i])
    assert snapshots.newest() == [*CONTENT, b"3"]
    assert files(snapshots) == ["snapshot-000000002", "snapshot-000000003"]


def test_a_view_counts_by_its_bytes(snapshots):
    snapshots.write([memoryview(np.arange(9)).cast("B")])
    assert snapshots.newest() == [np.arange(9).tobytes()]


def _damage(path, position, length):
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if length is not None:
            file.truncate(int(size * length))
            return
        file.seek(int(size * position))
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    "position, length", [(0, None), (0.001, None), (0.5, None), (0.99, None), (0, 0), (0, 0.5), (0, 0.999)]
)
def test_a_damaged_one_is_passed_over(snapshots, position, length):
    snapshots.write([*CONTENT, b"old"])
    snapshots.write([*CONTENT, b"new"])
    _damage(os.path.join(snapshots.folder, files(snapshots)[-1]), position, length)
    assert snapshots.newest() == [*CONTENT, b"old"]
    snapshots.write([b"newer"])
    assert snapshots.newest() == [b"newer"]


def test_one_that_was_never_finished_is_none(snapshots):
    def fails():
        yield b"begin"
        raise RuntimeError("killed here")

    snapshots.write([b"old"])
    with pytest.raises(RuntimeError):
        snapshots.write(fails())
    assert snapshots.newest() == [b"old"]
    snapshots.write([b"new"])  # takes the place of the unfinished one
    assert files(snapshots) == ["snapshot-000000000", "snapshot-000000001"]


def test_nothing_is_left(snapshots):
    snapshots.write([b"a"])
    snapshots.clear()
    assert not os.path.exists(snapshots.folder)


def test_only_this_user_may_read_it(snapshots):
    assert os.stat(snapshots.folder).st_mode & 0o077 == 0
