"""Optimizers, and what `compile` and `fit` can be told."""

import keras
import numpy as np

from tests.strategies.case_tools import CASES, case, data, fit, mlp, state

OPTIMIZERS = {
    "SGD": dict(learning_rate=0.1, momentum=0.9, nesterov=True),
    "RMSprop": {},
    "Adam": dict(amsgrad=True),
    "AdamW": {},
    "Adadelta": dict(learning_rate=1.0),
    "Adagrad": dict(learning_rate=0.1),
    "Adamax": {},
    "Adafactor": {},
    "Nadam": {},
    "Ftrl": {},
    "Lion": {},
    "Lamb": {},
    "Muon": {},
}


def optimizer_case(name):
    def case():
        return fit(mlp(), getattr(keras.optimizers, name)(**OPTIMIZERS[name]))

    return case


CASES.update({f"optimizer {name}": optimizer_case(name) for name in OPTIMIZERS if hasattr(keras.optimizers, name)})

if hasattr(keras.optimizers, "MultiOptimizer"):

    @case
    def several_optimizers():
        one, other = keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.Adam(0.01)
        map_ = keras.optimizers.OptimizerMap(one, {".*/kernel": other})
        return fit(mlp(), keras.optimizers.MultiOptimizer(map_))


for _argument in (
    dict(clipnorm=0.05),
    dict(clipvalue=0.01),
    dict(global_clipnorm=0.05),
    dict(weight_decay=0.01),
    dict(gradient_accumulation_steps=3),
    dict(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=2),
    dict(use_ema=True, ema_momentum=0.9),
    dict(loss_scale_factor=8.0),
):
    CASES["argument " + ",".join(_argument)] = lambda argument=_argument: fit(
        mlp(), keras.optimizers.Adam(0.01, **argument)
    )


@case
def schedule():
    return fit(mlp(), keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)))


@case
def steps_per_execution():
    return fit(mlp(), "adam", compile_arguments=dict(steps_per_execution=3))


@case
def run_eagerly():
    return fit(mlp(), "adam", compile_arguments=dict(run_eagerly=True))


@case
def uneven_last_batch_smaller_than_world():
    return fit(mlp(), "adam", rows=33, validation_data=data(17, seed=1))


@case
def single_row():
    return fit(mlp(), "adam", rows=1, batch_size=4)


@case
def uneven_first_batch():
    return fit(mlp(), "adam", rows=3, batch_size=32)


@case
def validation_split():
    return fit(mlp(), "adam", validation_split=0.3)


@case
def sample_weight():
    weights = np.linspace(0.1, 2.0, 37)
    return fit(mlp(), "adam", sample_weight=weights)


@case
def class_weight():
    model = mlp()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    x, y = data()
    history = model.fit(
        x, np.argmax(y, 1), class_weight={0: 0.5, 1: 2.0, 2: 1.0}, batch_size=8, epochs=3, verbose=0, shuffle=False
    )
    return state(model, history)


@case
def metrics():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4), keras.layers.Dense(1, activation="sigmoid")])
    model.compile("adam", "binary_crossentropy", metrics=["accuracy", keras.metrics.AUC(), keras.metrics.Precision()])
    x, y = data()
    target = (y[:, :1] > 0).astype("float64")
    history = model.fit(x, target, batch_size=8, epochs=3, verbose=0, shuffle=False, validation_data=(x, target))
    return {**state(model, history), "evaluate": model.evaluate(x, target, batch_size=16, verbose=0)}


@case
def steps_per_epoch():
    return fit(mlp(), "adam", epochs=4, steps_per_epoch=3)


@case
def regularization():
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(8, kernel_regularizer="l2"),
            keras.layers.Dense(3, bias_regularizer="l1"),
        ]
    )
    return fit(model, "adam")


@case
def summed_loss():
    return fit(mlp(), "adam", rows=36, batch_size=12, loss=keras.losses.MeanSquaredError(reduction="sum"))


@case
def frozen():
    model = mlp()
    model.layers[0].trainable = False
    return fit(model, "adam")


@case
def evaluate_in_a_callback():
    x, y = data()
    seen = []

    class Evaluate(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append([float(value) for value in self.model.evaluate(x, y, batch_size=7, verbose=0)])

        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                seen.append([float(self.model.predict(x[:3], verbose=0).sum())])

    return {**fit(mlp(), "adam", callbacks=[Evaluate()]), "seen": seen}


@case
def learning_callbacks():
    return fit(
        mlp(),
        keras.optimizers.SGD(2.0),
        epochs=8,
        validation_data=data(11, seed=4),
        callbacks=[
            keras.callbacks.ReduceLROnPlateau(monitor="val_loss", patience=1),
            keras.callbacks.EarlyStopping(monitor="val_loss", patience=4, restore_best_weights=True),
        ],
    )


@case
def multiplicative_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return fit(mlp(), "sgd", rows=32)
    finally:
        keras.config.set_dtype_policy("float64")
