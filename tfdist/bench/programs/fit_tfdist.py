"""A worker of `tfdist bench fit` under RingAllReduceStrategy, or, with `task()["strategy"]` None, by itself."""

import os

from serve import pin, task


def main():
    rank = int(os.environ["TFDIST_RANK"])
    pin(rank)
    import keras
    from fit_work import make_model, serve

    if task()["strategy"] is None:
        serve(rank, keras, make_model(keras, task()["model"]))
        return
    import tfdist

    with tfdist.strategy(task()["strategy"]).scope():
        model = make_model(keras, task()["model"])
    serve(rank, keras, model)


if __name__ == "__main__":
    main()
