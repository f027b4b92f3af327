"""The update rules step by step against Keras's own optimizers, and the NumPy reference beside them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.parameter_server.rule_cases import OPTIMIZERS, assert_close, make_optimizer
from tfdist.errors import ConfigurationError
from tfdist.parameter_server import reference, rule_library, rules

SHAPES = [(0,), (), (7,), (8, 8), (1009,)]
DTYPES = ["float64", "float32"]


class Pupil:
    """What becomes of the variables of a Keras optimizer when the native rule, or the reference, does its work."""

    def __init__(self, optimizer, variables):
        self.rule = rules.rule_of(optimizer)
        self.decay = optimizer.weight_decay or 0.0
        self.theta = [np.array(variable.numpy()) for variable in variables]
        self.reference_theta = [theta.copy() for theta in self.theta]
        self.slots = [rule_library.make_slots(self.rule, theta.shape, theta.dtype) for theta in self.theta]
        self.reference_slots = [reference.make_slots(self.rule, theta) for theta in self.theta]
        self.scalars = [rule_library.make_scalars(self.rule) for _ in self.theta]

    def apply(self, gradients, learning_rate, t):
        settings = {"learning_rate": learning_rate, "t": t, "weight_decay": self.decay}
        for i, gradient in enumerate(gradients):
            native = (self.rule, self.theta[i], self.slots[i])
            slow = (self.rule, self.reference_theta[i], self.reference_slots[i])
            if isinstance(gradient, tuple):
                rule_library.apply_rows(*native, *gradient, scalars=self.scalars[i], **settings)
                reference.apply_rows(*slow, *gradient, **settings)
            else:
                rule_library.apply(*native, gradient, scalars=self.scalars[i], **settings)
                reference.apply(*slow, gradient, **settings)


def assert_equals_keras(pupil, optimizer, variables, starts):
    """Compares parameters and slots; the reference's constants are not float32's, so there it is compared roughly."""
    kept = rules.slot_variables(optimizer, variables)
    for i, variable in enumerate(variables):
        expected = [np.asarray(held.numpy()) for held in (variable, *kept[i])]
        origins = [starts[i], *rule_library.make_slots(pupil.rule, starts[i].shape, starts[i].dtype)]
        for actual, value, origin in zip([pupil.theta[i], *pupil.slots[i]], expected, origins):
            assert_close(actual, value, origin)
        units = 16 if starts[i].dtype == np.float64 else 1000
        for actual, value, origin in zip([pupil.reference_theta[i], *pupil.reference_slots[i]], expected, origins):
            assert_close(actual, value, origin, units)


def make_variables(shapes, dtype, seed=0):
    random = np.random.default_rng(seed)
    starts = [np.array(random.normal(size=shape), dtype) for shape in shapes]
    return random, starts, [keras.Variable(start, dtype=dtype) for start in starts]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_dense_gradients_equal_keras(name, dtype):
    random, starts, variables = make_variables(SHAPES, dtype)
    optimizer = make_optimizer(name)
    optimizer.build(variables)
    pupil = Pupil(optimizer, variables)
    for t in range(1, 6):
        optimizer.learning_rate = 0.1 / t
        gradients = [np.array(random.normal(size=shape), dtype) for shape in SHAPES]
        gradients[2][3] = 0.0
        optimizer.apply([tf.constant(gradient) for gradient in gradients])
        pupil.apply(gradients, float(optimizer.learning_rate), t)
        assert_equals_keras(pupil, optimizer, variables, starts)


# Row 3 comes three times, row 1 twice, row 7 once, the others never or only in later steps.
STEPS_OF_ROWS = [[3, 1, 3, 7, 3, 1], [0, 1, 2], [10, 9, 9], [], [5, 5]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_equal_keras(name, dtype):
    random, starts, variables = make_variables([(11, 2, 3)], dtype)
    optimizer = make_optimizer(name)
    optimizer.build(variables)
    pupil = Pupil(optimizer, variables)
    for t, rows in enumerate(STEPS_OF_ROWS, start=1):
        values = random.normal(size=(len(rows), 2, 3)).astype(dtype)
        rows = np.array(rows, np.int64)
        optimizer.apply([tf.IndexedSlices(values, rows, (11, 2, 3))])
        pupil.apply([(rows, values)], float(optimizer.learning_rate), t)
        assert_equals_keras(pupil, optimizer, variables, starts)


@pytest.mark.parametrize("name", ["amsgrad", "rmsprop_centered_momentum", "nadam", "ftrl", "momentum"])
def test_state_can_be_taken_from_keras(name):
    random, starts, variables = make_variables([(5,), (2, 3)], "float64")
    optimizer = make_optimizer(name, use_ema=True)
    optimizer.build(variables)
    draw = lambda: [random.normal(size=start.shape) for start in starts]  # noqa: E731
    for _ in range(3):
        optimizer.apply([tf.constant(gradient) for gradient in draw()])
    pupil = Pupil(optimizer, variables)
    pupil.slots = [[slot.numpy() for slot in slots] for slots in rules.slot_variables(optimizer, variables)]
    product = rules.scalar_variable(optimizer)
    assert (product is not None) == (name == "nadam")
    if product is not None:
        pupil.scalars = [np.array([float(product), float(product), 3.0, 0.0]) for _ in variables]
    for t in (4, 5):
        gradients = draw()
        optimizer.apply([tf.constant(gradient) for gradient in gradients])
        for i, gradient in enumerate(gradients):
            arguments = {"learning_rate": float(optimizer.learning_rate), "t": t, "scalars": pupil.scalars[i]}
            rule_library.apply(pupil.rule, pupil.theta[i], pupil.slots[i], gradient, **arguments)
            assert_close(pupil.theta[i], variables[i].numpy(), starts[i])
    if product is not None:
        assert pupil.scalars[0][0] == pytest.approx(float(product), rel=1e-14) and pupil.scalars[0][2] == 5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slot_names_and_initial_values_are_keras(name):
    _, starts, variables = make_variables([(2,), (3,)], "float32")
    optimizer = make_optimizer(name, use_ema=True)
    optimizer.build(variables)
    rule = rules.rule_of(optimizer)
    assert rule_library.library().tfdist_rule_num_slots(rule_library.native(rule)) == len(rule.slot_names)
    for start, slots in zip(starts, rules.slot_variables(optimizer, variables)):
        assert len(slots) == len(rule.slot_names)
        for ours, theirs in zip(rule_library.make_slots(rule, start.shape, start.dtype), slots):
            assert np.array_equal(ours, theirs.numpy()) and theirs.shape == start.shape
    extra = (rule.kind == "nadam") + 2 + len(variables)  # u_product; iteration, learning rate, moving averages
    assert len(optimizer.variables) == extra + len(variables) * len(rule.slot_names)


class OwnAdam(keras.optimizers.Adam):
    """A class of a user's, which may do anything."""


HOSTED = {
    "adafactor": lambda: keras.optimizers.Adafactor(),
    "lamb": lambda: keras.optimizers.Lamb(),
    "loss_scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
    "accumulation": lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
    "derived": lambda: OwnAdam(),
    "variable_setting": lambda: keras.optimizers.Adam(beta_1=keras.Variable(0.9)),
}


@pytest.mark.parametrize("name", HOSTED)
def test_other_optimizers_have_no_rule(name):
    optimizer = HOSTED[name]()
    assert rules.rule_of(optimizer) is None
    with pytest.raises(ConfigurationError, match="An optimizer with an update rule was expected"):
        rules.slot_variables(optimizer, [])
    with pytest.raises(ConfigurationError, match="Host it as itself"):
        rules.scalar_variable(optimizer)


def test_unbuilt_optimizers_and_foreign_variables_are_refused():
    variables = [keras.Variable(np.zeros(2)), keras.Variable(np.zeros((2, 2)))]
    unbuilt = keras.optimizers.Adam()
    with pytest.raises(ConfigurationError, match="Build the optimizer with these variables first"):
        rules.slot_variables(unbuilt, variables)
    unbuilt.build(variables)
    with pytest.raises(ConfigurationError, match="Build the optimizer with these variables first"):
        rules.slot_variables(unbuilt, variables[::-1])
    nadam = keras.optimizers.Nadam()
    nadam.learning_rate = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    nadam.build(variables)
    assert [len(slots) for slots in rules.slot_variables(nadam, variables)] == [2, 2]
    nadam.add_variable((3,), name="of_a_user")
    with pytest.raises(ConfigurationError, match="expected to be its scalar u_product"):
        rules.scalar_variable(nadam)
