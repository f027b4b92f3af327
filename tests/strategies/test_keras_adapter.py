"""What tfdist relies on inside Keras and TensorFlow; fails when they change."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.losses import loss

import tfdist
from tfdist.strategies import keras_adapter, tensorflow_seed
from tfdist.strategies import step as replica_step


@pytest.fixture
def removed():
    keras_adapter.remove()
    yield
    keras_adapter.install()


def test_removing_puts_every_original_back(removed):
    before = [getattr(owner, name) for owner, name, _ in keras_adapter.WRAPPED]
    keras_adapter.install()
    assert all(getattr(o, n) is not f for (o, n, _), f in zip(keras_adapter.WRAPPED, before))
    keras_adapter.install()
    keras_adapter.remove()
    assert all(getattr(o, n) is f for (o, n, _), f in zip(keras_adapter.WRAPPED, before))


def test_signatures(removed):
    def names(function):
        return list(inspect.signature(function).parameters)

    assert names(keras.optimizers.Optimizer.apply) == ["self", "grads", "trainable_variables"]
    assert names(keras.optimizers.LossScaleOptimizer.apply) == ["self", "grads", "trainable_variables"]
    assert names(keras.metrics.Mean.update_state) == ["self", "values", "sample_weight"]
    assert names(keras.Model.make_predict_function) == ["self", "force"]
    assert {"x", "batch_size", "epochs", "verbose", "callbacks", "validation_data", "shuffle", "initial_epoch",
            "steps_per_epoch", "validation_split"} <= set(names(keras.Model.fit))  # fmt: skip
    assert {"x", "verbose", "callbacks"} <= set(names(keras.Model.evaluate)) & set(names(keras.Model.predict))
    for method in ("save", "save_weights", "export"):
        assert names(getattr(keras.Model, method))[:2] == ["self", "filepath"]


def test_array_adapter_has_what_we_read(removed):
    from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

    adapter = ArrayDataAdapter(np.zeros((5, 2)), np.zeros(5), batch_size=2, shuffle="batch")
    assert (adapter._num_samples, adapter.batch_size, adapter._shuffle) == (5, 2, "batch")
    assert len(adapter._inputs) == 2


def test_keras_asks_for_the_number_of_replicas_where_we_think():
    """The names of the functions that scale the loss decide how gradients are combined."""
    asked = []

    class Extended(type(tf.distribute.get_strategy().extended)):
        @property
        def _num_replicas_in_sync(self):
            asked.append(replica_step._asker())
            return 2

    strategy = tf.distribute.get_strategy()
    own = type(strategy.extended)
    strategy.extended.__class__ = Extended
    try:
        keras.losses.MeanSquaredError()(np.zeros((2, 1)), np.ones((2, 1)))
        loss.unscale_loss_for_distribution(tf.constant(1.0))
        tf.nn.scale_regularization_loss(tf.constant(1.0))
    finally:
        strategy.extended.__class__ = own
    assert asked == ["scale_loss_for_distribution", "unscale_loss_for_distribution", "scale_regularization_loss"]


def test_eager_seed_can_be_folded():
    tf.random.set_seed(5)
    with tensorflow_seed.FoldedSeed(0):
        tf.random.set_seed(5)
        chief = float(tf.random.uniform([]))
    tf.random.set_seed(5)
    with tensorflow_seed.FoldedSeed(1):
        other = float(tf.random.uniform([]))
    tf.random.set_seed(5)
    assert float(tf.random.uniform([])) == chief != other


def test_one_worker_adds_no_operations():
    """Under the strategy, one worker's train step is Keras's own graph."""

    def operations(strategy):
        keras.utils.clear_session()
        with strategy.scope():
            model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()])
            model.compile(keras.optimizers.Adam(clipnorm=1.0), "mse", metrics=["mae"])
        found = []

        @tf.function
        def step(x, y):
            result = strategy.run(model.train_step, args=((x, y),))
            found.extend(op.type for op in tf.compat.v1.get_default_graph().get_operations())
            return result

        with strategy.scope():
            model.optimizer.build(model.trainable_variables)
        for _ in range(2):
            step(tf.zeros((4, 3)), tf.zeros((4, 2)))
        return found

    plain = operations(tf.distribute.get_strategy())
    assert operations(tfdist.RingAllReduceStrategy()) == plain


def test_one_worker_trains_a_generator_without_losing_a_batch():
    def batches():
        for i in range(7):
            yield np.full((2, 3), float(i)), np.full((2, 1), float(i))

    def losses(strategy):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
            model.compile("sgd", "mse")
        return model.fit(batches(), verbose=0).history["loss"]

    assert losses(tfdist.RingAllReduceStrategy()) == losses(tf.distribute.get_strategy())


def test_steps_of_an_epoch_are_what_we_pass_over(removed):
    from keras.src.backend.tensorflow.trainer import TFEpochIterator

    iterator = TFEpochIterator(
        x=np.zeros((10, 2)), batch_size=2, distribute_strategy=tf.distribute.get_strategy(), steps_per_execution=2
    )
    steps = list(iterator._enumerate_iterator())
    assert [step[0] for step in steps] == [0, 2, 4] and iterator.steps_per_execution == 2
    assert all(next(step[-1], None) is not None for step in steps)


def test_what_monitors_changes_the_sign_of_its_threshold_once():
    """A worker that joins takes over what another one's callback has counted, this threshold too."""
    callback = keras.callbacks.ReduceLROnPlateau(mode="min", min_delta=0.5)
    assert callback.monitor_op is None and callback.min_delta == 0.5
    callback._set_monitor_op()
    assert callback.monitor_op is not None and callback.min_delta == -0.5
