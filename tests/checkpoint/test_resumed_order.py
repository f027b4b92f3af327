"""The rows of a shuffled epoch that was interrupted: each is seen once, whoever goes on."""

import shutil

import numpy as np
import pytest

from tests.multiprocess import run_workers

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(600)]

EPOCHS, STEPS = 4, 5


def run(num_workers, directory, at=None, **environment):
    """Returns the rows of each global batch, in order, and the results of rank 0."""
    results = run_workers(
        num_workers, "tests.checkpoint.cases:shuffled", environment=environment, directory=str(directory), at=at
    )
    batches = zip(*(worker["rows"] for worker in results))
    return [sorted(row for part in batch for row in part) for batch in batches], results[0]


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """The uninterrupted run, and the directory of an interrupted one."""
    folder = tmp_path_factory.mktemp("order")
    straight = run(2, folder / "straight", at=(EPOCHS, 0))
    interrupted, _ = run(2, folder / "interrupted", at=(1, 2))
    assert interrupted == straight[0][: STEPS + 3]
    return straight, folder / "interrupted"


def test_the_uninterrupted_run_shuffles(before):
    (batches, _), _ = before
    epochs = [batches[i : i + STEPS] for i in range(0, EPOCHS * STEPS, STEPS)]
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch) == list(range(40))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[3]


@pytest.mark.parametrize("num_workers, recover", [(3, "0"), (2, "1")])
def test_the_resumed_run_goes_on(before, num_workers, recover, tmp_path):
    (batches, straight), interrupted = before
    shutil.copytree(interrupted, tmp_path / "copy")
    resumed, last = run(num_workers, tmp_path / "copy", TFDIST_RECOVER=recover)
    assert resumed == batches[STEPS + 3 :]
    assert np.allclose(last["weights"], straight["weights"], rtol=1e-5)
    assert np.allclose(last["loss"], straight["loss"][1:], rtol=1e-5)
