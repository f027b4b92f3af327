"""The family table of the update rules: a row is a Keras optimizer, by class name and settings."""

import numpy as np

_FTRL_STRENGTHS = {
    "l1_regularization_strength": 0.02,
    "l2_regularization_strength": 0.1,
    "l2_shrinkage_regularization_strength": 0.03,
}
OPTIMIZERS = {
    "sgd": ("SGD", {}),
    "sgd_decay": ("SGD", {"weight_decay": 0.1}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.7, "nesterov": True}),
    "nesterov_without_momentum": ("SGD", {"nesterov": True}),
    "adam": ("Adam", {}),
    "adam_settings": ("Adam", {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3}),
    "amsgrad": ("Adam", {"amsgrad": True, "beta_2": 0.5}),
    "adamw": ("AdamW", {"weight_decay": 0.3}),
    "adagrad": ("Adagrad", {}),
    "adagrad_decay": ("Adagrad", {"initial_accumulator_value": 0.3, "epsilon": 1e-2, "weight_decay": 0.1}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop_momentum": ("RMSprop", {"momentum": 0.6, "rho": 0.8}),
    "rmsprop_centered": ("RMSprop", {"centered": True, "epsilon": 1e-3}),
    "rmsprop_centered_momentum": ("RMSprop", {"centered": True, "momentum": 0.5}),
    "adadelta": ("Adadelta", {}),
    "adadelta_settings": ("Adadelta", {"rho": 0.7, "epsilon": 1e-2}),
    "adamax": ("Adamax", {}),
    "adamax_settings": ("Adamax", {"beta_1": 0.7, "beta_2": 0.8, "epsilon": 1e-2}),
    "nadam": ("Nadam", {}),
    "nadam_settings": ("Nadam", {"beta_1": 0.7, "beta_2": 0.9, "epsilon": 1e-2}),
    "ftrl": ("Ftrl", {}),
    "ftrl_settings": ("Ftrl", {"learning_rate_power": -0.7, "beta": 0.5, **_FTRL_STRENGTHS}),
    "lion": ("Lion", {}),
    "lion_decay": ("Lion", {"beta_1": 0.8, "beta_2": 0.9, "weight_decay": 0.1}),
}
LEARNING_RATE = 0.05


def make_optimizer(name, **more):
    """Returns a new Keras optimizer of the table's row `name`."""
    import keras

    class_name, settings = OPTIMIZERS[name]
    return getattr(keras.optimizers, class_name)(**{"learning_rate": LEARNING_RATE, **settings, **more})


def assert_close(actual, expected, start, units=8):
    """Compares within `units` in the last place of the largest numbers of the tensor: those it has and what was added.

    Elements themselves may be small differences of large terms, which Keras sums in another order.
    """
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    if expected.size:
        size = np.max(np.abs(expected)) + np.max(np.abs(expected - start))
        off = np.max(np.abs(actual - expected)) / (size or 1) / np.finfo(expected.dtype).eps
        assert off <= units, f"off by {off:.1f} eps of the largest number, at most {units} were expected"
