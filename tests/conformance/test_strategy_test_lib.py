"""TensorFlow's own tests of a strategy, on two workers; on one they run in tests/strategies."""

import pytest

from tests import multiprocess
from tests.conformance import strategy_test_lib_cases as cases

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def problems():
    """The problems of every test, one dict per rank; all tests run in one job."""
    return multiprocess.run_workers(2, "tests.conformance.strategy_test_lib_cases:run", timeout=180)


@pytest.mark.parametrize(
    ("base", "name"), [(base.__name__, name) for base, names in cases.TAKEN.items() for name in names]
)
def test_two_workers(problems, base, name):
    for rank, of_rank in enumerate(problems):
        assert not of_rank[f"{base}.{name}"], f"rank {rank}: {of_rank[f'{base}.{name}']}"


def test_nothing_is_left_out_unseen():
    """Fails when a new TensorFlow brings a test that is neither taken nor left out for a reason."""
    for base, names in cases.TAKEN.items():
        assert {name for name in vars(base) if name.startswith("_test")} <= set(names) | set(cases.LEFT_OUT)
