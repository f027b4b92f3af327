"""Training goes on while a checkpoint is written."""

import threading

import numpy as np
import pytest

from tfdist import checkpoint
from tfdist.checkpoint import background
from tfdist.checkpoint.background import BackgroundWriter


class Disk:
    """Writes when it is told to, or fails."""

    def __init__(self, monkeypatch):
        self.may_go_on = threading.Semaphore(0)
        self.has_begun = threading.Semaphore(0)
        self.fails = False
        monkeypatch.setattr(background, "write", self._write)

    def _write(self, *arguments, **options):
        self.has_begun.release()
        assert self.may_go_on.acquire(timeout=20)
        if self.fails:
            raise OSError(28, "No space left on device")
        return checkpoint.write(*arguments, **options)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def submit(writer, number):
    writer.submit({"a": np.full(3, number)}, {"number": number})


def test_nobody_waits_for_the_disk_and_the_newest_is_written(tmp_path, disk):
    writer = BackgroundWriter(tmp_path)
    submit(writer, 0)
    assert disk.has_begun.acquire(timeout=20)
    for number in range(1, 5):
        submit(writer, number)
    with pytest.raises(TimeoutError, match="within timeout=0.01 s. Received: it is still being written"):
        writer.wait(0.01)
    assert checkpoint.latest(tmp_path) is None
    disk.may_go_on.release(2)
    writer.wait(20)
    assert checkpoint.load(tmp_path).values == {"number": 4}
    assert checkpoint.load(tmp_path / "checkpoint-00000001.tfdist").values == {"number": 0}
    assert not disk.has_begun.acquire(blocking=False) or not disk.has_begun.acquire(blocking=False)


def test_no_thread_stays(tmp_path):
    writer = BackgroundWriter(tmp_path, keep=1)
    writer.wait(0)
    for number in range(3):
        submit(writer, number)
        writer.wait(20)
    assert not [thread for thread in threading.enumerate() if thread.name == "tfdist-checkpoint" and thread.is_alive()]
    assert checkpoint.load(tmp_path).values == {"number": 2}


def test_a_failure_is_told_and_is_over_with_the_next(tmp_path, disk, caplog):
    writer = BackgroundWriter(tmp_path)
    disk.fails = True
    submit(writer, 0)
    disk.may_go_on.release()
    with pytest.raises(OSError, match="No space left"):
        writer.wait(20)
    assert "The checkpoint was not written to" in caplog.text
    disk.fails = False
    submit(writer, 1)
    disk.may_go_on.release()
    writer.wait(20)
    assert checkpoint.load(tmp_path).values == {"number": 1}
