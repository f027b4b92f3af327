"""TensorFlow's own tests of a strategy, on several workers in lockstep."""

import tensorflow as tf
from tensorflow.python.distribute import strategy_test_lib as library

import tfdist

ANY, TWO = library.DistributionTestBase, library.TwoDeviceDistributionTestBase
TAKEN = {
    ANY: (
        "_test_minimize_loss_eager",
        "_test_call_and_merge_exceptions",
        "_test_global_step_update",
        "_test_trainable_variable",
        "_test_input_fn_iterable",
    ),
    TWO: (
        "_test_run",
        "_test_all_reduce_sum",
        "_test_all_reduce_sum_gradients",
        "_test_all_reduce_sum_gradient_tape",
        "_test_all_reduce_mean",
        "_test_all_reduce_mean_gradients",
        "_test_all_reduce_mean_gradient_tape",
    ),
}
LEFT_OUT = {
    "_test_minimize_loss_graph": "a session of TensorFlow 1 draws initial values on each worker by itself; Keras 3 has none",
    "_test_replica_id": "counts the replicas of one process; a worker has one, whose number is its rank",
    "_test_summary_for_replica_zero_only": "looks for the summary on every worker; only the chief writes it",
    "_test_input_fn_iterator": "a helper",
    "_test_numpy_dataset": "skips itself: strategies of TensorFlow 1 only",
    "_test_collective_comms": "a helper",
    "_test_collective_comms_gradients": "a helper",
    "_test_collective_comms_gradient_tape": "a helper",
}


class Replicas:
    """The strategy with the results of all replicas, which these tests expect in one process.

    Elements of a data set go to the replicas in turn, as to the devices of one process.
    """

    def __init__(self, strategy):
        self._strategy = strategy

    def __getattr__(self, name):
        return getattr(self._strategy, name)

    def unwrap(self, value):
        gathered = self._strategy.all_gather(tf.convert_to_tensor(value)[None], name="of all replicas")
        return tuple(tf.unstack(gathered, num=self._strategy.world_size))

    experimental_local_results = unwrap

    def make_input_fn_iterator(self, function):
        def own_part(context):
            return function(context).shard(context.num_input_pipelines, context.input_pipeline_id)

        return self._strategy.make_input_fn_iterator(own_part)


def run():
    """Returns the dict of test to its problem, or to its reason if it was skipped."""
    strategy = tfdist.RingAllReduceStrategy(timeout=30)
    problems = {}
    for base, names in TAKEN.items():
        for name in names:
            problems[f"{base.__name__}.{name}"] = _run(base, name, strategy)
            strategy.worker_group.barrier(name=name, timeout=30)
    return problems


def _run(base, name, strategy):
    def test(case):
        if name == "_test_input_fn_iterable":
            workers = strategy.world_size
            function = case._input_fn_to_test_input_context(
                lambda: tf.data.Dataset.range(3), workers, workers, strategy.rank
            )
            case._test_input_fn_iterable(strategy, function, [[0], [1], [2]])
        else:
            options = {"run_in_function": True} if name.endswith("_gradients") else {}  # tf.gradients needs a graph
            getattr(case, name)(Replicas(strategy) if base is TWO else strategy, **options)

    result = type("Case", (base,), {"runTest": test})().run()
    reasons = [f"skipped: {reason}" for _, reason in result.skipped]
    return "\n".join([*(text for _, text in result.errors + result.failures), *reasons])
