"""What `Optimizer.apply` must do on one worker with a parameter server as it does in plain Keras."""

import contextlib
import functools
import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdist

STEPS = 4
GRADIENT = np.array([0.5, 3.0], np.float32)


@pytest.fixture(scope="module")
def strategy():
    made = tfdist.AsyncSGDStrategy()
    yield made
    made.close()


def keras_variable(dtype="float32", shape=(2,)):
    return keras.Variable(np.ones(shape), dtype=dtype)


def overwritten():
    variable = keras_variable()
    variable.overwrite_with_gradient = True
    return variable


def momentum():
    return keras.optimizers.SGD(0.5, momentum=0.9)


def scaled():
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5), initial_scale=4.0)


def train(make_optimizer, make_variable, gradient, strategy=None):
    """Returns `(variable, optimizer)` after some steps, in plain Keras without a strategy."""
    with strategy.scope() if strategy else contextlib.nullcontext():
        optimizer, variable = make_optimizer(), make_variable()

        def step():
            optimizer.apply([tf.constant(gradient)], [variable])

        for _ in range(STEPS):
            strategy.run(step) if strategy else step()
    return variable.numpy(), optimizer


@pytest.mark.parametrize(
    ("make_variable", "gradient"),
    [
        (lambda: keras_variable("float64"), GRADIENT),
        (lambda: keras_variable("float32"), GRADIENT.astype(np.float64)),
        (lambda: keras_variable(shape=()), np.float32(3.0)),
        (lambda: tf.Variable([1.0, 2.0]), GRADIENT),
        (overwritten, GRADIENT),
    ],
    ids=["wider variable", "narrower variable", "scalar", "tf.Variable", "overwritten with the gradient"],
)
def test_variables_of_all_kinds(strategy, make_variable, gradient):
    plain, served = (train(momentum, make_variable, gradient, where)[0] for where in (None, strategy))
    np.testing.assert_allclose(served, plain, rtol=1e-6)


def test_a_loss_scale_optimizer_is_hosted(strategy):
    plain, served = (train(scaled, keras_variable, GRADIENT, where)[0] for where in (None, strategy))
    np.testing.assert_allclose(served, plain, rtol=1e-6)


def test_a_gradient_of_another_shape_is_refused_before_it_is_pushed(strategy):
    with strategy.scope():
        optimizer, variable = keras.optimizers.SGD(), keras_variable()
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="shape"):
            strategy.run(lambda: optimizer.apply([tf.ones(3)], [variable]))
    assert [kept["updates"] for kept in strategy.known_optimizers(optimizer)[0].store.summaries()] == [0]


def test_missing_gradients_are_warned_of(strategy):
    with strategy.scope():
        variables, optimizer = [keras_variable(), keras_variable()], keras.optimizers.SGD(1.0)
        with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
            strategy.run(lambda: optimizer.apply([None, tf.ones(2)], variables))
    assert [variable.numpy().tolist() for variable in variables] == [[1, 1], [0, 0]]


def test_a_name_is_not_used_again(strategy):
    for shape in ((2,), (3,)):  # the second would meet the first one's tensors on the server
        make_variable = functools.partial(keras_variable, shape=shape)
        train(keras.optimizers.SGD, make_variable, np.ones(shape, np.float32), strategy)
        gc.collect()


def test_synchronize_brings_the_state_of_the_optimizer(strategy):
    plain, served = (train(momentum, keras_variable, GRADIENT, where)[1] for where in (None, strategy))
    strategy.synchronize()
    np.testing.assert_allclose(served.variables[-1].numpy(), plain.variables[-1].numpy(), rtol=1e-6)
    assert np.all(plain.variables[-1].numpy() != 0)


def test_one_workers_moving_statistics_are_kept():
    results = []
    for make_strategy in (None, tfdist.AsyncSGDStrategy):
        strategy = make_strategy() if make_strategy else None
        keras.utils.set_random_seed(3)
        with strategy.scope() if strategy else contextlib.nullcontext():
            model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)])
            model.compile(keras.optimizers.SGD(0.01), "mse")
        x = np.random.default_rng(0).normal(5, 2, (32, 2)).astype(np.float32)
        model.fit(x, x[:, :1], batch_size=8, epochs=2, shuffle=False, verbose=0)
        results.append(model.layers[0].moving_mean.numpy())
        if strategy:
            strategy.close()
    np.testing.assert_allclose(*results, rtol=1e-5)
    assert np.all(results[0] != 0)


def test_what_a_callback_swaps_is_saved(strategy, tmp_path):
    with strategy.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1, use_ema=True), "mse")
    x = np.ones((32, 2), np.float32)
    save = keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras"))
    model.fit(x, x[:, :1], epochs=2, verbose=0, callbacks=[keras.callbacks.SwapEMAWeights(swap_on_epoch=True), save])
    saved = keras.models.load_model(tmp_path / "2.keras")
    np.testing.assert_array_equal(saved.layers[0].kernel.numpy(), model.layers[0].kernel.numpy())
