"""Hostile bytes on every connection that Python reads: a sample of what `make fuzz` runs for minutes."""

import tracemalloc

import pytest

from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import TARGETS

_RUNS = {"handshake": 1500, "tampered_handshake": 150, "frame": 1500, "store": 400, "store_client": 300, "control": 300}
_MEGABYTES_AT_MOST = 32

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.mark.parametrize("name", TARGETS)
def test_a_hostile_peer_does_no_harm(name):
    make, corpus, tokens = TARGETS[name]
    mutator = Mutator(corpus, tokens)
    with make() as target:
        tracemalloc.start()
        try:
            for data in [*corpus, *(mutator.next() for _ in range(_RUNS[name]))]:
                try:
                    target(data)
                except BaseException as error:
                    raise AssertionError(f"{name} broke at {data!r}") from error
            assert tracemalloc.get_traced_memory()[1] < _MEGABYTES_AT_MOST << 20
        finally:
            tracemalloc.stop()
