"""What the tests of the parameter server have in common: both transports, and a look at what they leave behind."""

import os
import time

import pytest


@pytest.fixture(params=["shm", "tcp"])
def transport(request):
    return request.param


@pytest.fixture
def nothing_left():
    """Sockets, memfds and threads, native ones too, must be as few as before; some end a moment later."""
    before = _left()
    yield
    deadline = time.monotonic() + 5.0
    while _left() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _left() <= before


def _left():
    """Returns the number of descriptors other than of plain files, and of threads."""
    descriptors = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the listing's own
        descriptors += target.startswith(("socket:", "pipe:", "/memfd:tfdist"))
    return max(descriptors, 0), len(os.listdir("/proc/self/task"))
