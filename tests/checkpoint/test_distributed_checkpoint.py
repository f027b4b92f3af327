"""`DistributedCheckpoint` with one worker: plain Keras, and every strategy alone."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdist
from tests.checkpoint.cases import Interrupt, Interrupted, compiled, data, state
from tfdist import checkpoint
from tfdist.callbacks import DistributedCheckpoint, distributed_checkpoint
from tfdist.errors import ConfigurationError, CorruptCheckpointError, TransportError

STRATEGIES = [None, "ring", "async", "sync"]


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    if request.param is None:
        yield None
        return
    made = tfdist.strategy(request.param)
    yield made
    if made.uses_servers:
        made.close()


@pytest.fixture(autouse=True)
def nothing_counted():
    distributed_checkpoint._fit_calls.clear()


def as_a_new_process(callback=None):
    """Counts from the beginning, as after a start; the interpreter that ended had waited for `callback`."""
    if callback is not None:
        callback._writer.wait(60)
    distributed_checkpoint._fit_calls.clear()


def fit(model, *callbacks, epochs=4, **arguments):
    x, y = data()
    return model.fit(
        x, y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=list(callbacks), **arguments
    )


def interrupted(directory, epoch, batch=None, strategy=None, **arguments):
    """Trains until the interruption, as a process that ends there."""
    callback = DistributedCheckpoint(directory, **arguments)
    with pytest.raises(Interrupted):
        fit(compiled(strategy), callback, Interrupt(epoch, batch))
    as_a_new_process(callback)


def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(tmp_path, strategy):
    straight = compiled(strategy)
    expected = fit(straight).history["loss"]
    interrupted(tmp_path, epoch=1, strategy=strategy)
    resumed = compiled(strategy)
    history = fit(resumed, DistributedCheckpoint(tmp_path))
    assert history.epoch == [2, 3]
    assert history.history["loss"] == expected[2:]
    assert all(np.array_equal(a, b) for a, b in zip(state(straight), state(resumed)))


@pytest.mark.parametrize("at", [(0, 0), (1, 2), (2, 4)])
def test_in_the_midst_of_an_epoch(tmp_path, strategy, at):
    straight = compiled(strategy)
    expected = fit(straight).history
    interrupted(tmp_path, *at, strategy=strategy, save_freq=1)
    resumed = compiled(strategy)
    history = fit(resumed, DistributedCheckpoint(tmp_path, save_freq=1))
    # The last step of an epoch was taken: it is not repeated for its logs.
    first = at[0] + (at[1] == 4)
    assert history.epoch == list(range(first, 4))
    assert {name: values[first:] for name, values in expected.items()} == history.history
    assert all(np.array_equal(a, b) for a, b in zip(state(straight), state(resumed)))


def test_steps_that_are_executed_together(tmp_path):
    def train(*callbacks, together):
        model = compiled()
        model.compile("adam", "mse", steps_per_execution=together)
        return fit(model, *callbacks).history["loss"], state(model)

    loss, expected = train(together=2)
    callback = DistributedCheckpoint(tmp_path, save_freq=1)
    with pytest.raises(Interrupted):
        train(callback, Interrupt(1, batch=3), together=2)
    as_a_new_process(callback)
    again, found = train(DistributedCheckpoint(tmp_path), together=2)
    assert again == loss[1:]
    assert all(np.array_equal(a, b) for a, b in zip(expected, found))


def test_batches_of_another_size(tmp_path):
    interrupted(tmp_path, 1, batch=1, save_freq=1)
    seen = []
    note = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: seen.append(batch))
    x, y = data()
    model = compiled()
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[DistributedCheckpoint(tmp_path), note])
    assert seen == list(range(4, 10))  # 2 of 5 batches of 8 rows


def test_data_of_unknown_length(tmp_path):
    def batches():
        x, y = data()
        for i in range(0, 40, 8):
            yield x[i : i + 8], y[i : i + 8]

    def train(*callbacks):
        model = compiled()
        spec = (tf.TensorSpec((None, 5)), tf.TensorSpec((None, 3)))
        dataset = tf.data.Dataset.from_generator(batches, output_signature=spec)
        model.fit(dataset, epochs=3, verbose=0, callbacks=list(callbacks))
        return state(model)

    expected = train()
    callback = DistributedCheckpoint(tmp_path, save_freq=1)
    with pytest.raises(Interrupted):
        train(callback, Interrupt(0, batch=2))
    as_a_new_process(callback)
    assert all(np.array_equal(a, b) for a, b in zip(expected, train(DistributedCheckpoint(tmp_path))))


def test_random_generators_go_on(tmp_path):
    def masks(*callbacks):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(3)])
        model.compile("sgd", "mse")
        return fit(model, *callbacks).history["loss"]

    expected = masks()
    callback = DistributedCheckpoint(tmp_path)
    with pytest.raises(Interrupted):
        masks(callback, Interrupt(1))
    as_a_new_process(callback)
    assert masks(DistributedCheckpoint(tmp_path)) == expected[2:]


def test_a_fit_that_has_ended_is_not_repeated_but_continued(tmp_path):
    fit(compiled(), DistributedCheckpoint(tmp_path), epochs=2)
    as_a_new_process()
    again = compiled()
    assert fit(again, DistributedCheckpoint(tmp_path), epochs=2).epoch == []
    assert again.optimizer.iterations.numpy() == 10
    as_a_new_process()
    assert fit(compiled(), DistributedCheckpoint(tmp_path), epochs=3).epoch == [2]


def test_an_early_stop_counts_as_the_end(tmp_path):
    stop = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: setattr(model, "stop_training", epoch == 1))
    model = compiled()
    assert fit(model, DistributedCheckpoint(tmp_path), stop).epoch == [0, 1]
    as_a_new_process()
    assert fit(compiled(), DistributedCheckpoint(tmp_path)).epoch == []


def test_several_fits_of_a_script(tmp_path):
    second = DistributedCheckpoint(tmp_path)

    def script(*callbacks):
        """Trains, changes what is trained, and goes on."""
        model = compiled()
        epochs = [fit(model, DistributedCheckpoint(tmp_path), epochs=2).epoch]
        model.layers[0].trainable = False
        model.compile(keras.optimizers.SGD(0.1), "mse")
        epochs.append(fit(model, second, *callbacks, epochs=3).epoch)
        return model, epochs

    straight, epochs = script()
    assert epochs == [[0, 1], [0, 1, 2]]
    expected = state(straight)
    for name in os.listdir(tmp_path):
        os.remove(tmp_path / name)
    as_a_new_process()
    with pytest.raises(Interrupted):
        script(Interrupt(1))
    as_a_new_process(second)
    resumed, epochs = script()
    assert epochs == [[], [2]]
    assert all(np.array_equal(a, b) for a, b in zip(expected, state(resumed)))


def test_steps_between_checkpoints(tmp_path):
    seen = []
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(written(tmp_path)))
    # 5 steps an epoch
    callback = DistributedCheckpoint(tmp_path, save_freq=3, keep=9)
    wait = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: callback._writer.wait(60))
    fit(compiled(), callback, wait, note, epochs=2)
    assert [at["step"] for at in seen[-1]] == [3, 1, 4]
    assert [at["epoch"] for at in seen[-1]] == [0, 1, 1]
    assert len(written(tmp_path)) == 4 and written(tmp_path)[-1]["is_over"]


def test_an_older_checkpoint_where_the_newest_is_damaged(tmp_path):
    interrupted(tmp_path, epoch=2)
    path = checkpoint.latest(tmp_path)
    os.truncate(path, os.path.getsize(path) - 1)
    assert fit(compiled(), DistributedCheckpoint(tmp_path)).epoch == [2, 3]
    for name in os.listdir(tmp_path):
        os.truncate(tmp_path / name, 99)
    as_a_new_process()
    with pytest.raises(CorruptCheckpointError, match="3 of 3 are damaged"):
        fit(compiled(), DistributedCheckpoint(tmp_path))


def test_beside_keras_backup(tmp_path):
    """The later one in the list decides; both have seen the same epochs."""

    def callbacks():
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        return [backup, DistributedCheckpoint(tmp_path / "ours")]

    straight = compiled()
    fit(straight)
    for order in (1, -1):
        both = callbacks()
        with pytest.raises(Interrupted):
            fit(compiled(), *both[::order], Interrupt(1))
        as_a_new_process(both[1])
        resumed = compiled()
        assert fit(resumed, *callbacks()[::order]).epoch == [2, 3]
        assert all(np.array_equal(a, b) for a, b in zip(state(straight), state(resumed)))
        for name in os.listdir(tmp_path / "ours"):
            os.remove(tmp_path / "ours" / name)
        as_a_new_process()


def test_mistakes(tmp_path):
    for value in (0, "batch", 1.5):
        with pytest.raises(ConfigurationError, match=f"save_freq is expected to be .* Received: save_freq={value!r}"):
            DistributedCheckpoint(tmp_path, save_freq=value)
    with pytest.raises(ConfigurationError, match="keep is expected to be at least 1. Received: keep=0"):
        DistributedCheckpoint(tmp_path, keep=0)
    interrupted(tmp_path, epoch=0)
    with pytest.raises(ConfigurationError, match=r"kernel \(5, 9\) float32, where the checkpoint has kernel \(5, 8\)"):
        fit(compiled(units=9), DistributedCheckpoint(tmp_path))
    as_a_new_process()
    with pytest.raises(ConfigurationError, match="The optimizer is expected to be like that of the checkpoint"):
        fit(compiled(optimizer="sgd"), DistributedCheckpoint(tmp_path))
    as_a_new_process()
    assert fit(compiled(optimizer="sgd"), DistributedCheckpoint(tmp_path, resume=False)).epoch == [0, 1, 2, 3]


def written(directory):
    known = sorted(os.listdir(directory)) if os.path.exists(directory) else []
    return [checkpoint.load(directory / name).values["position"] for name in known if name.startswith("checkpoint")]


def test_an_emergency_in_the_midst_of_an_epoch(tmp_path, strategy):
    callback = DistributedCheckpoint(tmp_path)
    callback.emergency()  # before anything: nothing to save
    model = compiled(strategy)
    with pytest.raises(Interrupted):
        fit(model, callback, Interrupt(1, batch=2))
    callback.emergency()
    assert written(tmp_path)[-1] == dict(
        fit_call=1, epoch=1, step=3, steps=0 if callback._steps() == 0 else 5, first_epoch=0, epochs=4, is_over=False
    )
    found = list(checkpoint.load(tmp_path).tensors.items())
    assert len([name for name, _ in found if name.startswith("metrics/")]) == 4  # sums and counts of loss and mae
    if strategy is None:
        for variable, (_, array) in zip([*model.variables, *model.optimizer.variables], found):
            assert np.array_equal(variable.numpy(), array)


def test_an_error_of_tfdist_in_fit_is_an_emergency(tmp_path):
    def fail(batch, logs):
        if batch == 2:
            raise TransportError("the group is unusable")

    strategy = tfdist.AsyncSGDStrategy()
    model = compiled(strategy)
    with pytest.raises(TransportError):
        fit(model, DistributedCheckpoint(tmp_path), keras.callbacks.LambdaCallback(on_train_batch_end=fail))
    found = checkpoint.load(tmp_path)
    assert found.values["position"]["step"] == 3 and found.values["data"]["seed"][1] == 1
    # Adam's moments came from the server
    assert all(np.any(array) for name, array in found.tensors.items() if "momentum" in name)
    strategy.close()


def test_an_emergency_never_fails(tmp_path, caplog, monkeypatch):
    callback = DistributedCheckpoint(tmp_path)
    with pytest.raises(Interrupted):
        fit(compiled(), callback, Interrupt(0, batch=2))
    monkeypatch.setattr("tfdist.checkpoint.disk.write", lambda *_: (_ for _ in ()).throw(OSError("No space left")))
    callback.emergency()
    assert "No last checkpoint was written. No space left" in caplog.text


def test_a_disk_that_fails_at_the_end_fails_the_fit(tmp_path, monkeypatch):
    monkeypatch.setattr("tfdist.checkpoint.disk.write", lambda *_: (_ for _ in ()).throw(OSError("No space left")))
    with pytest.raises(OSError, match="No space left"):
        fit(compiled(), DistributedCheckpoint(tmp_path))
