import importlib.util

import keras
import numpy as np
import pytest

import tfdist
from tests.multiprocess import run_workers
from tfdist.callbacks import StalenessMonitor

NUM_BATCHES, EPOCHS = 4, 3


def train(strategy, *callbacks, **arguments):
    with strategy.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    x = np.ones((8 * NUM_BATCHES, 2), np.float32)
    return model.fit(x, x[:, :1], batch_size=8, epochs=EPOCHS, verbose=0, callbacks=list(callbacks), **arguments)


@pytest.fixture
def strategy():
    made = tfdist.AsyncSGDStrategy()
    yield made
    made.close()


def test_one_worker_is_never_stale(strategy, capfd):
    history = train(strategy, StalenessMonitor(verbose=1)).history
    assert history["staleness_mean"] == history["staleness_max"] == history["waiting_seconds"] == [0.0] * EPOCHS
    assert all(rate > 0 for rate in history["updates_per_second"])
    assert "updates_per_second_worker_0" not in history
    lines = [line for line in capfd.readouterr().out.splitlines() if "staleness" in line]
    assert [line.split(":")[0] for line in lines] == ["Epoch 1", "Epoch 2", "Epoch 3"]


def test_updates_are_those_of_the_epoch(strategy, monkeypatch):
    monkeypatch.setattr("tfdist.callbacks.staleness_monitor.time.perf_counter", iter(np.arange(100) * 0.5).__next__)
    history = train(strategy, StalenessMonitor()).history
    assert history["updates_per_second"] == [NUM_BATCHES / 0.5] * EPOCHS


def test_validation_does_not_count(strategy, monkeypatch):
    clock = iter([0.0, 1.0, 100.0, 101.0, 200.0, 201.0])
    monkeypatch.setattr("tfdist.callbacks.staleness_monitor.time.perf_counter", clock.__next__)
    x = np.ones((8, 2), np.float32)
    history = train(strategy, StalenessMonitor(), validation_data=(x, x[:, :1])).history
    assert history["updates_per_second"] == [NUM_BATCHES] * EPOCHS


def test_a_second_fit_counts_anew(strategy, monkeypatch):
    monitor = StalenessMonitor()
    model = train(strategy, monitor).model
    model.optimizer.iterations.assign(1000)  # as restoring a checkpoint does
    monkeypatch.setattr("tfdist.callbacks.staleness_monitor.time.perf_counter", iter(np.arange(100) * 0.5).__next__)
    x = np.ones((16, 2), np.float32)
    history = model.fit(x, x[:, :1], batch_size=8, epochs=2, verbose=0, callbacks=[monitor]).history
    assert history["updates_per_second"] == [2 / 0.5] * 2


def test_strategies_without_servers_are_refused():
    with pytest.raises(tfdist.errors.ConfigurationError, match="with parameter servers. Received: strategy=Ring"):
        train(tfdist.RingAllReduceStrategy(), StalenessMonitor())


def test_log_dir_without_tensorboard_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(tfdist.errors.ConfigurationError, match=r"Received: not installed. Run `pip install 'tfdist\["):
        StalenessMonitor(log_dir="nowhere")


def test_tensorboard_gets_scalars_and_a_histogram(strategy, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorflow.compat.v1.train import summary_iterator

    train(strategy, StalenessMonitor(log_dir=str(tmp_path)))
    found = {}
    for path in tmp_path.iterdir():
        for event in summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.metadata.plugin_data.plugin_name))
    assert found["updates_per_second"] == [(step, "scalars") for step in range(EPOCHS)]
    assert found["staleness"] == [(step, "histograms") for step in range(EPOCHS)]


@pytest.mark.multiprocess
def test_two_workers_have_the_same_figures(tmp_path):
    results = run_workers(2, "tests.callbacks.test_staleness_monitor:on_two_workers")
    assert results[0] == results[1]
    history = results[0]
    assert max(history["staleness_max"]) >= 1
    for total, *own in zip(*(history[f"updates_per_second{end}"] for end in ("", "_worker_0", "_worker_1"))):
        assert 0 < total == pytest.approx(sum(own))


def on_two_workers():
    strategy = tfdist.AsyncSGDStrategy()
    with strategy.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    x = np.ones((512, 2), np.float32)
    return model.fit(x, x[:, :1], batch_size=4, epochs=2, verbose=0, callbacks=[StalenessMonitor()]).history
