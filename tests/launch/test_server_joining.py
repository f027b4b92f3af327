"""Workers of strategies with parameter servers that are killed under `tfdist run`, start again and join."""

import json

import pytest
from launching import running

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(400)]

# The parameters are a table of how often each row was trained on: every step takes 1 from those that it sees.
COUNTS = """
import hashlib, json, sys
import keras
import numpy as np
import tensorflow as tf
import tfdist
from tfdist.cluster.store import StoreClient

kind, victim, source = sys.argv[1], int(sys.argv[2]), sys.argv[3]
incarnation = int(os.environ["TFDIST_INCARNATION"])
NUM_ROWS, EPOCHS = 320, 5


class Watch(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.tables, self.joined_in, self.steps = [], None, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.joined_in = self.joined_in or [epoch]

    def on_train_batch_begin(self, batch, logs=None):
        self.steps += 1
        time.sleep(0.01)
        if rank == victim and incarnation == 0 and self.epoch == 1 and batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_end(self, epoch, logs=None):
        self.tables.append(self.model.trainable_variables[0].numpy().ravel())
        if epoch == 1:  # whoever was killed is to find us at work
            with StoreClient(os.environ["TFDIST_STORE"], os.environ["TFDIST_SECRET"].encode()) as store:
                store.get("elastic/join/1", timeout=60.0)


class Prediction(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return y_pred


strategy = tfdist.strategy(kind)
rows = np.arange(NUM_ROWS)


def model():
    with strategy.scope():
        layers = [keras.Input((1,), dtype="int32"), keras.layers.Embedding(NUM_ROWS, 1, "zeros"), keras.layers.Flatten()]
        made = keras.Sequential(layers)
        made.compile(keras.optimizers.SGD(1.0), Prediction(reduction="sum"))
    return made


def data():
    if source == "arrays":
        return {"x": rows[:, None], "y": np.zeros((NUM_ROWS, 1)), "batch_size": 16}
    pairs = (rows[:, None], np.zeros((NUM_ROWS, 1)))
    return {"x": tf.data.Dataset.from_tensor_slices(pairs).shuffle(NUM_ROWS).batch(16)}


first = model()
before = first.fit(**data(), epochs=1, verbose=0)  # what comes later begins with other numbers than on a joiner
watch, second = Watch(), model()
validation = (rows[:, None], np.zeros((NUM_ROWS, 1))) if source == "arrays" else data()["x"]
history = second.fit(**data(), epochs=EPOCHS, verbose=0, callbacks=[watch], validation_data=validation)
last = second.fit(**data(), epochs=1, verbose=0)
table = second.trainable_variables[0].numpy().ravel()
changes = [sorted(map(float, {*(one - other)})) for one, other in zip(watch.tables, watch.tables[1:])]
print(json.dumps({
    "rank": rank, "incarnation": incarnation, "table": hashlib.sha256(table.tobytes()).hexdigest(),
    "changes": changes, "epochs": [len(h.epoch) for h in (before, history, last)], "losses": history.history["loss"],
    "range": [float(table.min()), float(table.max())], "joined_in": watch.joined_in, "steps": watch.steps,
    "updates": int(second.optimizer.iterations), "chief": strategy.is_chief,
}), flush=True)
"""


def run(*arguments):
    """Runs a job to its end; returns what each worker has printed, by rank, and what the launcher has said."""
    with running("run", "-n", "3", *arguments) as launcher:
        stdout, stderr = launcher.communicate(timeout=350)
    assert launcher.returncode == 0, stdout + stderr
    told = [json.loads(line.partition("] ")[2]) for line in stdout.splitlines() if line[4:].startswith("{")]
    return {worker["rank"]: worker for worker in told}, stderr


@pytest.mark.parametrize(
    "kind, victim, source", [("sync", 1, "arrays"), ("async", 0, "arrays"), ("async", 1, "dataset")]
)
def test_a_killed_worker_joins_when_an_epoch_begins(script, kind, victim, source):
    workers, stderr = run(script(COUNTS), kind, victim, source)
    joiner = workers[victim]
    assert joiner["incarnation"] == 1 and joiner["joined_in"] >= [2] and joiner["steps"] > 0, stderr
    for worker in workers.values():
        assert worker["table"] == joiner["table"] and worker["losses"] == joiner["losses"]
        assert worker["updates"] == joiner["updates"] and worker["epochs"] == [1, 5, 1]
        # Every row once in each epoch in which there were three again.
        assert all(change == [1.0] for change in worker["changes"][-2:]), worker["changes"]
    assert [rank for rank, worker in workers.items() if worker["chief"]] == [1 if victim == 0 else 0]
    if kind == "sync":
        assert joiner["range"] == [-6.0, -6.0] and joiner["updates"] == 120
