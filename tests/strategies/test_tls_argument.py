"""`tls=True` of a strategy encrypts what the job has not connected yet, and refuses where it would come too late."""

import threading

import keras
import numpy as np
import pytest

import tfdist


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("TFDIST_TLS", "0")
    return monkeypatch


def test_a_server_strategy_trains_encrypted():
    strategy = tfdist.AsyncSGDStrategy(tls=True)
    try:
        with strategy.scope():
            model = keras.Sequential([keras.layers.Dense(1)])
            model.compile("sgd", "mse")
        losses = model.fit(np.ones((8, 2)), np.ones(8), epochs=5, verbose=0).history["loss"]
        assert losses[-1] < losses[0]
        assert any(thread.name == "tfdist-tls" for thread in threading.enumerate())
    finally:
        strategy.close()


@pytest.mark.parametrize("tls, variable, remedy", [(True, "0", "`tfdist run --tls`"), (False, "1", "Unset TFDIST_TLS")])
def test_what_is_connected_otherwise_is_refused(environment, tls, variable, remedy):
    environment.setenv("TFDIST_TLS", variable)
    with pytest.raises(tfdist.errors.ConfigurationError, match=remedy):
        tfdist.RingAllReduceStrategy(tfdist.comm.Group(0, 1), tls=tls)


def test_what_is_connected_alike_is_taken(environment):
    environment.setenv("TFDIST_TLS", "1")
    assert tfdist.RingAllReduceStrategy(tfdist.comm.Group(0, 1), tls=True).world_size == 1
