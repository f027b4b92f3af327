"""Where a `fit` begins when there is a checkpoint."""

import pytest

from tfdist.checkpoint.position import Position, Start, start

MIDST = Position(fit_call=2, epoch=3, step=4, epochs=10)
OVER = Position(fit_call=2, epoch=5, step=0, epochs=10, is_over=True)  # stopped early


@pytest.mark.parametrize(
    "saved, fit_call, epochs, steps, expected",
    [
        (None, 1, 10, None, Start(False)),
        (MIDST, 1, 7, None, Start(False, 7)),  # has ended, and was followed by another
        (MIDST, 2, 10, None, Start(True, 3, 4)),
        (MIDST, 2, 10, 5, Start(True, 3, 4)),
        (MIDST, 2, 10, 4, Start(True, 4)),
        (MIDST, 3, 10, None, Start(False)),
        (OVER, 2, 10, None, Start(True, 10)),
        (OVER, 2, 12, None, Start(True, 5)),
        (OVER, 3, 10, None, Start(False)),
    ],
)
def test_start(saved, fit_call, epochs, steps, expected):
    assert start(saved, fit_call, epochs, steps) == expected
