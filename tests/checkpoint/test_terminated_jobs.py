"""SIGTERM to some of the workers of a job: one last checkpoint, and everybody ends."""

import pytest

from tests.multiprocess import run_workers
from tfdist import checkpoint

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(400)]


def terminate(directory, num_workers, name, ranks, **arguments):
    """Returns the exit codes, and the position of the last checkpoint."""
    outcomes = run_workers(
        num_workers, "tests.checkpoint.cases:terminated", check=False,
        directory=str(directory), name=name, ranks=ranks, **arguments,
    )  # fmt: skip
    assert not any("Traceback" in output for _, output, _ in outcomes), outcomes
    position = checkpoint.load(directory).values["position"]
    return [code for code, _, _ in outcomes], (position["epoch"], position["step"])


def test_plain_keras_ends_at_the_step(tmp_path):
    assert terminate(tmp_path, 1, None, [0]) == ([143], (1, 3))


def test_in_validation_the_epoch_counts_as_done(tmp_path):
    assert terminate(tmp_path, 2, "ring", [1], in_validation=True) == ([143, 143], (2, 0))


@pytest.mark.parametrize("ranks", [[1], [0, 1, 2]])
def test_workers_in_step_end_at_the_next_step(tmp_path, ranks):
    assert terminate(tmp_path, 3, "ring", ranks) == ([143] * 3, (1, 4))


def test_asynchronous_workers_end_behind_the_barriers_of_their_epoch(tmp_path):
    codes, (epoch, _) = terminate(tmp_path, 2, "async", [1])
    assert codes == [143, 143] and epoch >= 1
