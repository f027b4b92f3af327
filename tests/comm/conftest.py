"""The tests of groups run on both transports: shared memory and sockets."""

import pytest


@pytest.fixture(params=["shm", "tcp"], autouse=True)
def transport(request, monkeypatch):
    monkeypatch.setenv("TFDIST_TRANSPORT", request.param)
    return request.param
