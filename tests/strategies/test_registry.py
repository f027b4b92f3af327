import keras
import pytest
import tensorflow as tf

import tfdist
from tfdist import cluster, errors
from tfdist.strategies import setup


def test_unknown_name_lists_the_names():
    with pytest.raises(errors.ConfigurationError, match=r"\['async', .*, 'ring', 'sync'\]. Received: name='rung'"):
        tfdist.strategy("rung")


def test_environment_names_the_default(monkeypatch):
    monkeypatch.setenv("TFDIST_STRATEGY", "rung")
    with pytest.raises(errors.ConfigurationError, match="rung"):
        tfdist.strategy()
    assert isinstance(tfdist.strategy("ring"), tfdist.RingAllReduceStrategy)
    monkeypatch.delenv("TFDIST_STRATEGY")
    assert isinstance(tfdist.strategy(), tfdist.RingAllReduceStrategy)


def test_mirrored_is_refused_with_several_workers(monkeypatch):
    several = cluster.Cluster(rank=0, world_size=2, store_address="127.0.0.1:1", secret=b"0" * 32)
    monkeypatch.setattr(cluster, "current", lambda: several)
    with pytest.raises(errors.ConfigurationError, match="unrelated models.*2 workers. Use 'ring'"):
        tfdist.strategy("mirrored")


def test_mirrored_with_one_worker():
    assert isinstance(tfdist.strategy("mirrored", devices=["CPU:0"]), tf.distribute.MirroredStrategy)


def test_use_sets_the_default_and_survives_clear_session():
    from tfdist.strategies import keras_adapter

    try:
        strategy = tfdist.use("ring")
        assert tf.distribute.get_strategy() is strategy
        keras.utils.clear_session()
        assert tf.distribute.get_strategy() is strategy
    finally:
        keras_adapter.keep_after_clear_session(None)
        tf.distribute.experimental_set_strategy(None)


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(errors.ConfigurationError, match="KERAS_BACKEND='jax'. Unset KERAS_BACKEND"):
        setup.check_keras()


def test_legacy_keras_is_refused(monkeypatch):
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    with pytest.raises(errors.ConfigurationError, match="TF_USE_LEGACY_KERAS='1'"):
        setup.check_keras()
