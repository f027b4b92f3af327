"""Workers whose servers are killed while `fit` runs."""

import os
import signal

import numpy as np


def fits(strategy="AsyncSGDStrategy", optimizer="adam", kills=(3, 9), epochs=3, **options):
    """Trains while this worker's servers are killed at the steps `kills`, if it has started them."""
    import keras

    import tfdist
    from tests.parameter_server.processes import children

    keras.utils.set_random_seed(1)
    chosen = getattr(tfdist, strategy)(seed=2, **options)
    with chosen.scope():
        layers = [keras.layers.Embedding(11, 4), keras.layers.Flatten(), keras.layers.Dense(8, "relu")]
        model = keras.Sequential([keras.Input([3]), *layers, keras.layers.BatchNormalization(), keras.layers.Dense(1)])
        made = {"adam": keras.optimizers.Adam(0.01), "lamb": keras.optimizers.Lamb(0.01)}[optimizer]
        model.compile(made, "mse")

    class Kill(keras.callbacks.Callback):
        steps = 0

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1
            servers = children("tfdist.parameter_server")
            if servers and self.steps in kills:
                os.kill(servers[kills.index(self.steps) % len(servers)], signal.SIGKILL)

    x = np.arange(192).reshape(64, 3) % 11
    y = x.sum(1, keepdims=True) / 10.0
    history = model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, callbacks=[Kill()])
    iterations = int(model.optimizer.iterations.numpy())
    weights = np.concatenate([np.ravel(w) for w in model.get_weights()])
    chosen.close()
    left = len(children("tfdist.parameter_server"))
    return {"loss": history.history["loss"], "iterations": iterations, "weights": weights, "left": left}
