"""The tests of Keras that may end otherwise under a strategy, each with its reason.

Beside them, on several workers and with servers (`keras_plugin`): tfdist refuses `jit_compile=True`, so that the variants "..._jit" of tests
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

_STATE = (
    "looks into the optimizer's state after a step; servers keep it, the copy is filled when `fit` ends and on saving"
)
_ASSIGNS = "watches the assignments of Keras's own update; a server makes it"
_SPARSE = "optimizers.optimizer_sparse_test::OptimizerSparseTest::test_sparse_"
_RAISES = "goes on with NaN in the weights; the servers refuse such gradients, not_finite='raise'"
_NAN = "callbacks.terminate_on_nan_test::TerminateOnNaNTest::test_"
_NAN_TESTS = (
    "TerminateOnNaN raise_error_terminate_does_not_trigger_on_train_end raise_error_terminate_preserves_backup "
    "raise_error_terminate_stops_on_later_batch terminate_on_nan_graceful_stop terminate_on_nan_raise_error_raises_error"
).split()
_OPTIMIZERS = (
    "adadelta adafactor adagrad adam adam_amsgrad adamax adamw adamw_amsgrad ftrl lion loss_scale_optimizer_sgd nadam "
    "rmsprop rmsprop_momentum rmsprop_momentum_centered sgd sgd_momentum sgd_momentum_nesterov scatter_update"
).split()
SERVERS = {
    "optimizers.adam_test::AdamTest::test_ema": _STATE,
    "optimizers.adam_test::AdamTest::test_ema_overwrite_frequency": _STATE,
    "optimizers.optimizer_test::OptimizerTest::test_ema": _STATE,
    "optimizers.optimizer_test::OptimizerTest::test_gradient_accumulation": _STATE,
    "optimizers.optimizer_test::OptimizerTest::test_overwrite_with_gradient_with_gradient_accumulation": _STATE,
    "trainers.trainer_test::TestTrainer::test_callbacks_can_update_state_at_batch_boundary": "assigns a weight during "
    "training; the servers' holds",
    "trainers.trainer_test::TestTrainer::test_fit_sparse_tf_eager": _ASSIGNS,
    "trainers.trainer_test::TestTrainer::test_fit_sparse_tf_graph": _ASSIGNS,
    **{f"{_SPARSE}gradients_{name}": _ASSIGNS for name in _OPTIMIZERS},
    **{f"{_NAN}{name}": _RAISES for name in _NAN_TESTS},
    "callbacks.csv_logger_test::CSVLoggerTest::test_stop_training_csv": _RAISES,
    _SPARSE + "correctness_scatter_update": "its optimizer cannot be made from its own configuration, as a server must",
}


def of(strategy):
    """Returns the exceptions for a strategy of tfdist, test to reason."""
    if strategy.uses_servers:
        return SERVERS
    return TWO_WORKERS if strategy.world_size > 1 else ONE_WORKER
