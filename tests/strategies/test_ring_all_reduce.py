import numpy as np
import pytest

from tests.multiprocess import run_workers

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(200)]


@pytest.fixture(scope="module", params=[1, 2, 3])
def results(request):
    return request.param, run_workers(1, "tests.strategies.devices:train", num_devices=request.param)[0]


def test_ring_equals_tensorflows_reduction(results):
    _, found = results
    keys = [key[len("ring ") :] for key in found if key.startswith("ring ")]
    assert len(keys) > 10
    for key in keys:
        ours, theirs = found[f"ring {key}"], found[f"one {key}"]
        if "local" in key:
            assert ours == theirs
        else:
            assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-6), key


def test_all_devices_hold_the_same_bits(results):
    num_devices, found = results
    for what in ("SUM", "MEAN", "gathered"):
        for i in range(1, num_devices):
            assert np.array_equal(found[f"ring {what} on device {i}"], found[f"ring {what} on device 0"])
    expected = np.arange(7) * num_devices + 10 * sum(range(num_devices))
    assert np.array_equal(found["ring SUM on device 0"], expected)
