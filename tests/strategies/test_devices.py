import pytest
import tensorflow as tf

from tfdist.strategies import devices


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two GPUs as far as `choose` can see; returns what it asks TensorFlow for."""
    asked = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["first", "second"])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda device, kind: asked.append(device))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda device, grows: asked.append(grows))
    return asked


@pytest.mark.parametrize(("rank", "device"), [(0, "first"), (1, "second"), (2, "first")])
def test_workers_share_the_gpus_by_local_rank(gpus, rank, device):
    assert devices.choose(rank, 3) == "/device:GPU:0"
    assert gpus == [device, True]


def test_one_worker_keeps_all_gpus(gpus):
    assert devices.choose(0, 1) == "/device:GPU:0"
    assert gpus == []


def test_without_gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert devices.choose(1, 2) == "/device:CPU:0"


def test_too_late_is_a_warning(gpus, monkeypatch, caplog):
    def refuse(device, kind):
        raise RuntimeError("already initialised")

    monkeypatch.setattr(tf.config, "set_visible_devices", refuse)
    assert devices.choose(1, 2) == "/device:GPU:0"
