"""The tests in Keras's own wheel end under a strategy as they do without one.

`TFDIST_CONFORMANCE=full` runs them on one worker too, under the ring and asynchronously, which takes another ten minutes.
"""

import importlib.util
import os

import keras
import pytest

from tests.conformance import keras_suite

_CALLBACKS = (
    "backup_and_restore callback csv_logger early_stopping lambda_callback learning_rate_scheduler model_checkpoint "
    "monitor_callback reduce_lr_on_plateau remote_monitor swap_ema_weights terminate_on_nan"
).split()
_OPTIMIZERS = (
    "adadelta adafactor adagrad adam adamax adamw ftrl lamb lion loss_scale_optimizer multi_optimizer muon nadam "
    "optimizer_sparse optimizer rmsprop schedule_free_adamw sgd"
).split()
SUITES = {
    "trainer": ["trainers.trainer_test"],
    "distribute": ["backend.tensorflow.distribute_test", "backend.tensorflow.optimizer_distribute_test"],
    "callbacks": [f"callbacks.{name}_test" for name in _CALLBACKS],
    "optimizers": [f"optimizers.{name}_test" for name in _OPTIMIZERS],
}

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(1200)]


def _check(suite, num_workers, strategy="ring"):
    modules = [name for name in SUITES[suite] if importlib.util.find_spec(f"keras.src.{name}")]
    if not modules:
        pytest.skip(f"Keras {keras.__version__} does not ship {SUITES[suite]}.")
    differences = keras_suite.differences(modules, keras_suite.run(modules, num_workers, strategy))
    assert not differences, "\n\n".join(f"{test}: {text}" for test, text in differences.items())


@pytest.mark.parametrize("suite", SUITES)
def test_two_workers(suite):
    _check(suite, 2)


@pytest.mark.skipif(os.environ.get("TFDIST_CONFORMANCE") != "full", reason="runs with TFDIST_CONFORMANCE=full")
@pytest.mark.parametrize("strategy", ["ring", "async"])
@pytest.mark.parametrize("suite", ["trainer", "callbacks", "optimizers"])  # "distribute" is about two replicas
def test_one_worker(suite, strategy):
    _check(suite, 1, strategy)
