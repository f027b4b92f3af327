"""A worker of `tfdist bench fit` under TensorFlow's MultiWorkerMirroredStrategy, with legacy tf-keras: Keras 3 refuses it.

TF_CONFIG and TF_USE_LEGACY_KERAS=1 come from the coordinator.
"""

import json
import os

from serve import pin, task


def main():
    rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    pin(rank)
    import tensorflow as tf
    from fit_work import make_model, serve

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = make_model(tf.keras, task()["model"])
    serve(rank, tf.keras, model)


if __name__ == "__main__":
    main()
