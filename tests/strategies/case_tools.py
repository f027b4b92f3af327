"""What the training runs of `cases.py` share: data, a small model, and how a run is begun and told of."""

import traceback

import keras
import numpy as np

CASES = {}  # name -> function without arguments that trains under the current strategy


def case(function):
    """Enters a function into `CASES` under its name."""
    CASES[function.__name__] = function
    return function


def data(rows=37, features=5, outputs=3, seed=0):
    """Returns inputs and targets, every row distinct."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, features))
    y = np.tanh(x @ generator.normal(size=(features, outputs))) + 0.1 * generator.normal(size=(rows, outputs))
    return x, y


def mlp(features=5, outputs=3, units=8):
    return keras.Sequential(
        [keras.Input((features,)), keras.layers.Dense(units, activation="tanh"), keras.layers.Dense(outputs)]
    )


def state(model, history=None):
    """Returns the weights before and after as far as known, and the logs."""
    result = {f"weight {i} {v.path.rsplit('/')[-1]}": v.numpy() for i, v in enumerate(model.weights)}
    if history is not None:
        result["history"] = history.history
    return result


def fit(model, optimizer, rows=37, epochs=3, batch_size=8, loss="mse", compile_arguments=None, **arguments):
    """Compiles and fits on closed-form data; returns the state of model and optimizer."""
    model.compile(optimizer, loss, metrics=["mae"], **(compile_arguments or {}))
    x, y = data(rows)
    start = [v.numpy() for v in model.weights]
    history = model.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=0, shuffle=False, **arguments)
    result = state(model, history)
    result.update({f"start {i}": value for i, value in enumerate(start)})
    for i, variable in enumerate(model.optimizer.variables):
        result[f"optimizer {i} {variable.path.rsplit('/')[-1]}"] = variable.numpy()
    return result


def begin():
    """Puts Keras into the state in which every case starts."""
    keras.utils.clear_session()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(7)


def outcome(function, *arguments):
    """Returns the function's results, or under "error" the end of its traceback."""
    try:
        return function(*arguments)
    except Exception as error:
        return {"error": "".join(traceback.format_exception(error))[-3000:]}
