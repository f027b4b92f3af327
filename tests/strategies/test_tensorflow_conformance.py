"""TensorFlow's own tests of a strategy, from its pip package."""

import pytest
import tensorflow as tf
from tensorflow.python.distribute import strategy_test_lib as library

import tfdist

_BASES = (library.DistributionTestBase, library.OneDeviceDistributionTestBase)
_TAKEN = {
    "_test_minimize_loss_eager",
    "_test_minimize_loss_graph",
    "_test_summary_for_replica_zero_only",
    "_test_replica_id",
    "_test_call_and_merge_exceptions",
    "_test_global_step_update",
    "_test_trainable_variable",
    "_test_run",
    "_test_all_reduce_sum",
    "_test_all_reduce_sum_gradients",
    "_test_all_reduce_sum_gradient_tape",
    "_test_all_reduce_mean",
    "_test_all_reduce_mean_gradients",
    "_test_all_reduce_mean_gradient_tape",
}
_LEFT_OUT = {
    "_test_input_fn_iterable": "takes further arguments; called below",
    "_test_input_fn_iterator": "a helper of the above",
    "_test_numpy_dataset": "skips itself: strategies of TensorFlow 1 only",
    "_test_collective_comms": "a helper",
    "_test_collective_comms_gradients": "a helper",
    "_test_collective_comms_gradient_tape": "a helper",
    "_test_device_and_input_device_are_colocated": "skips itself in eager mode: needs sessions of a cluster",
    "_test_device_and_input_device_are_colocated_with_function": "skips itself in eager mode",
}


def methods():
    for base in _BASES:
        yield from ((base, name) for name in vars(base) if name.startswith("_test"))


@pytest.mark.parametrize(("base", "name"), [pair for pair in methods() if pair[1] in _TAKEN])
def test_strategy_passes(base, name):
    case = type("Case", (base,), {"runTest": lambda self: getattr(self, name)(tfdist.RingAllReduceStrategy())})()
    result = case.run()
    problems = [text for _, text in result.errors + result.failures]
    assert not problems, problems[0]


def test_input_fn_iterable():
    strategy = tfdist.RingAllReduceStrategy()

    class Case(library.DistributionTestBase):
        def runTest(self):  # noqa: N802
            function = self._input_fn_to_test_input_context(lambda: tf.data.Dataset.range(3), 1, 1, 0)
            self._test_input_fn_iterable(strategy, function, [[0], [1], [2]])

    result = Case().run()
    assert not result.errors + result.failures, (result.errors + result.failures)[0][1]


def test_nothing_is_left_out_unseen():
    """Fails when a new TensorFlow brings a test that is neither taken nor left out for a reason."""
    assert {name for _, name in methods()} == _TAKEN | set(_LEFT_OUT)
