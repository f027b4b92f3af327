"""Fixtures of several folders."""

import threading
import time

import pytest


@pytest.fixture
def no_thread_is_left():
    """Fails a test that leaves a thread behind."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before
