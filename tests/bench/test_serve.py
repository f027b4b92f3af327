"""What a rank does, without the process around it."""

import importlib.util
import threading
from pathlib import Path

import numpy as np
import pytest

import tfdist.bench


def _load(name):
    path = Path(tfdist.bench.__file__).with_name("programs") / f"{name}.py"
    specification = importlib.util.spec_from_file_location(f"bench_program_{name}", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


serve = _load("serve")


def summed(world_size, count, scale=1.0):
    total, part = np.zeros(count, np.float32), np.empty(count, np.float32)
    for rank in range(world_size):
        serve.fill(part, rank, scale)
        total += part
    return total


@pytest.mark.parametrize("world_size", [2, 3, 64])
def test_the_sums_are_exact(world_size):
    assert serve.check(summed(world_size, 70_001), world_size) is None


@pytest.mark.parametrize("index", [0, 65_535, 65_536, 70_000])
def test_one_wrong_element_is_named(index):
    array = summed(2, 70_001)
    array[index] += 1
    assert f"element {index} of 70001 was expected to be" in serve.check(array, 2)


def test_a_sum_that_is_no_number_is_wrong():
    array = summed(2, 8)
    array[3] = np.nan
    assert "Received: nan" in serve.check(array, 2, tolerance=0.1)


def test_a_rank_left_out_is_noticed_within_the_tolerance_of_bfloat16():
    rounded = summed(4, 5000, 2.0**-10).astype(np.float16).astype(np.float32)
    assert serve.check(rounded, 4, 2.0**-10, tolerance=4 * 2.0**-8) is None
    assert serve.check(summed(3, 5000, 2.0**-10), 4, 2.0**-10, tolerance=4 * 2.0**-8) is not None


def test_buffers_lie_as_tensorflows():
    for count in (1, 1000, 1 << 20):
        array = serve.allocate(count)
        assert array.size == count and array.dtype == np.float32 and array.ctypes.data % 4096 == 64


def test_nobody_leaves_the_barrier_before_the_last_came(tmp_path):
    path = tmp_path / "barrier"
    path.write_bytes(bytes(64 * 3))
    arrived, seen = [], []

    def rank(number):
        barrier = serve.Barrier(path, number, 3)
        for turn in range(20):
            arrived.append(turn)
            barrier.wait()
            seen.append(arrived.count(turn))

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert seen == [3] * 60


def test_a_barrier_does_not_wait_forever(tmp_path, monkeypatch):
    path = tmp_path / "barrier"
    path.write_bytes(bytes(64 * 2))
    monkeypatch.setattr(serve, "_BARRIER_SECONDS", 0.05)
    with pytest.raises(TimeoutError, match="another rank did not come"):
        serve.Barrier(path, 0, 2).wait()
