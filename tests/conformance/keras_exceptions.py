"""The tests of Keras that may end otherwise under a strategy, each with its reason.

Beside them, on several workers (`keras_plugin`): tfdist refuses `jit_compile=True`, so that the variants "..._jit" of tests
are left out, and it reads as False in tests of other things. It refuses `Optimizer.apply` outside of `strategy.run`, so
that the tests' calls are put inside.
"""

_DISTRIBUTE = "backend.tensorflow.distribute_test::DistributeTest::"
_OPTIMIZER = "backend.tensorflow.optimizer_distribute_test::OptimizerDistributeTest::"
_BACKUP = "callbacks.backup_and_restore_test::BackupAndRestoreCallbackTest::"
_COUNTERS = (
    "looks into the callback's private counters, which only the chief's keeps (tests/strategies restores a backup)"
)

# Each worker writes files of its own by TensorFlow's means, which know no chief.
OWN_FOLDERS = {"optimizers.optimizer_test::OptimizerTest::test_tf_checkpointing"}

TWO_WORKERS = {
    _DISTRIBUTE + "test_variable_creation": "asks for the class MirroredVariable; a worker's variables are plain",
    _DISTRIBUTE
    + "test_variable_synchronization": "asks for ON_WRITE where nothing was said, MirroredStrategy's default",
    _OPTIMIZER
    + "test_ema": "hands one tensor object to both replicas, which MirroredStrategy counts once; workers share none",
    _OPTIMIZER
    + "test_gradient_accumulation": "looks into the accumulators; ours hold the sum over the workers, for clipping to see it",
    _BACKUP + "test_best_case_step": _COUNTERS,
    _BACKUP + "test_best_case_epoch": _COUNTERS,
    _BACKUP + "test_backup_corrupted": _COUNTERS,
}
ONE_WORKER = {}


def of(num_workers):
    """Returns the exceptions for a number of workers, test to reason."""
    return ONE_WORKER if num_workers == 1 else TWO_WORKERS
