"""Several workers train what one process trains (DESIGN 9.9): float64, bit-equal between ranks, 1e-9 to one process."""

import re

import numpy as np
import pytest

from tests.multiprocess import run_workers
from tests.strategies import cases

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(900)]

_TOLERANCE = 1e-9
_LOOSER = {
    "multiplicative_mixed_precision": 2e-2,  # bfloat16 has 8 bits of mantissa, and the order of summation differs
    "loop_with_keras_loss": 1e-7,  # Keras multiplies the loss by 1/3 in float32
}


@pytest.fixture(scope="module")
def one():
    return run_workers(1, "tests.strategies.cases:run_cases", names=list(cases.CASES), timeout=400)[0]


# One asynchronous worker is as good as plain Keras: nobody else pushes, nothing is stale.
@pytest.fixture(
    scope="module",
    params=[
        ("ring", 2, "tcp", "static"),
        ("ring", 3, "shm", "elastic"),
        ("sync", 2, "shm", "elastic"),
        ("async", 1, "tcp", "static"),
    ],
    ids=lambda row: "-".join(map(str, row)),
)
def many(request):
    strategy, num_workers, transport, membership = request.param
    environment = {"TFDIST_STRATEGY": strategy, "TFDIST_TRANSPORT": transport}
    environment["TFDIST_RECOVER"] = str(int(membership == "elastic"))
    names = list(cases.CASES)
    return run_workers(
        num_workers, "tests.strategies.cases:run_cases", timeout=800, environment=environment, names=names
    )


@pytest.mark.parametrize("name", list(cases.CASES))
def test_workers_equal_one_process(name, one, many):
    for result in (one, *many):
        assert f"{name}: error" not in result, result[f"{name}: error"]
    keys = [key for key in one if key.startswith(f"{name}: ")]
    assert keys
    for key in keys:
        expected, found = flat(one[key]), [flat(result[key]) for result in many]
        for rank, other in enumerate(found):
            assert np.array_equal(other, found[0]), f"{key} differs between rank 0 and rank {rank}"
        assert expected.shape == found[0].shape, key
        bound = _LOOSER.get(name, _TOLERANCE) * scale(key, name, one)
        assert largest(expected - found[0]) <= bound, key


def flat(value):
    """Returns all numbers of a nested value as one float64 vector."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return np.concatenate([flat(part) for part in value]) if value else np.zeros(0)
    return np.ravel(np.asarray(value, np.float64))


def largest(difference):
    return np.abs(difference).max() if difference.size else 0.0


def scale(key, name, one):
    """Returns how far a weight has moved; for anything else its own size."""
    position = re.search(r": weight (\d+)", key)
    start = one.get(f"{name}: start {position[1]}") if position else None
    size = largest(flat(one[key]) - flat(start)) if start is not None else largest(flat(one[key]))
    return size or 1.0
