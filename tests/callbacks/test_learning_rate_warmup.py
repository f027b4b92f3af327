import keras
import numpy as np
import pytest

from tfdist import errors
from tfdist.callbacks import AverageMetrics, BroadcastInitialState, LearningRateWarmup
from tfdist.callbacks.learning_rate_warmup import scale_at


@pytest.mark.parametrize(("epoch", "factor"), [(0, 1.0), (1.25, 2.0), (2.5, 3.0), (5, 5.0), (9, 5.0)])
def test_scale_rises_linearly_to_its_target(epoch, factor):
    assert scale_at(epoch, warmup_epochs=5, target=5) == pytest.approx(factor)


def train(callback, learning_rate=0.1, epochs=3, **arguments):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(learning_rate), "mse")
    rates = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: rates.append(float(model.optimizer.learning_rate.numpy()))
    )
    x = np.zeros((4, 1))
    model.fit(x, x, batch_size=2, epochs=epochs, verbose=0, callbacks=[callback, watch], **arguments)
    return rates


def test_rate_after_every_batch():
    assert np.allclose(train(LearningRateWarmup(2, target=3)), [0.1, 0.15, 0.2, 0.25, 0.3, 0.3])


def test_restored_run_keeps_the_raised_rate():
    assert np.allclose(train(LearningRateWarmup(2, target=3), initial_epoch=2), [0.1, 0.1])


def test_after_the_warm_up_others_decide():
    class Lower(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 0.01

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x = np.zeros((4, 1))
    model.fit(x, x, batch_size=4, epochs=3, verbose=0, callbacks=[LearningRateWarmup(1, target=2), Lower()])
    assert float(model.optimizer.learning_rate.numpy()) == pytest.approx(0.01)


@pytest.mark.parametrize("warmup_epochs", [0, -1])
def test_length_must_be_positive(warmup_epochs):
    with pytest.raises(errors.ConfigurationError, match="warmup_epochs must be positive. Received"):
        LearningRateWarmup(warmup_epochs)


def test_schedules_are_refused():
    with pytest.raises(errors.ConfigurationError, match="ExponentialDecay. Let the schedule itself warm up"):
        train(LearningRateWarmup(1), keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9))


def test_root_must_be_a_rank():
    with pytest.raises(errors.ConfigurationError, match="root must be a rank, 0 to 0. Received: root=1"):
        train(BroadcastInitialState(root=1))


def test_one_worker_has_nothing_to_average():
    assert len(train(AverageMetrics())) == 6
