"""The native update rules by themselves: cuts, rows, instruction sets, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.parameter_server.rule_cases import assert_close
from tfdist.errors import ConfigurationError
from tfdist.parameter_server import reference, rule_library, rules
from tfdist.parameter_server.rules import FLAGS, PARAMETERS, Rule, make_rule

_VALUES = {"learning_rate_power": -0.5, "epsilon": 1e-3, "rho": 0.9, "beta_1": 0.9, "beta_2": 0.99}
_EVERY_KIND = [Rule(kind, tuple(_VALUES.get(name, 0.1) for name in names)) for kind, names in PARAMETERS.items()]
_VARIANTS = [
    make_rule("sgd", momentum=0),
    make_rule("sgd", "nesterov", momentum=0.9),
    make_rule("adam", "amsgrad", beta_1=0.9, beta_2=0.99, epsilon=1e-3),
    make_rule("rmsprop", "centered", rho=0.9, momentum=0, epsilon=1e-3),
    make_rule("rmsprop", "centered", rho=0.9, momentum=0.5, epsilon=1e-3),
    make_rule("rmsprop", rho=0.9, momentum=0, epsilon=1e-3),
    Rule("ftrl", (-0.7, 0.1, 0.01, 0.1, 0.02, 0.3)),
]
RULES = {f"{rule.kind}{rule.parameters}{''.join(rule.flags)}": rule for rule in [*_EVERY_KIND, *_VARIANTS]}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


class Tensor:
    """A tensor with slots that have moved before, all of its elements distinct."""

    def __init__(self, rule, shape, dtype="float32", seed=0):
        random = np.random.default_rng(seed)
        self.rule, self.theta = rule, random.normal(size=shape).astype(dtype)
        self.slots = [np.abs(random.normal(size=shape)).astype(dtype) + 0.1 for _ in rule.slot_names]
        if "centered" in rule.flags:
            self.slots[0] += 40  # the variance is positive: no NaN
        self.gradient = random.normal(size=shape).astype(dtype)
        self.scalars = rule_library.make_scalars(rule)

    def settings(self, **more):
        return {"learning_rate": 0.1, "t": 3, "scalars": self.scalars, **more}

    def arrays(self):
        return [self.theta, *self.slots]


@every_rule
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_cuts_change_no_bits(rule, dtype, weight_decay):
    size = 9001  # more than two blocks of the decay
    whole, cut = Tensor(rule, size, dtype), Tensor(rule, size, dtype)
    rule_library.apply(rule, whole.theta, whole.slots, whole.gradient, **whole.settings(weight_decay=weight_decay))
    for start, end in [(0, 1), (1, 1), (1, 4), (4, 4099), (4099, 8990), (8990, 9001)]:
        part = slice(start, end)
        slots = [slot[part] for slot in cut.slots]
        settings = cut.settings(weight_decay=weight_decay)
        rule_library.apply(rule, cut.theta[part], slots, cut.gradient[part], **settings)
    assert all(np.array_equal(a, b) for a, b in zip(whole.arrays(), cut.arrays()))
    assert np.array_equal(whole.scalars, cut.scalars)


@every_rule
def test_dense_equals_the_reference(rule):
    ours, theirs = Tensor(rule, 37, "float64"), Tensor(rule, 37, "float64")
    for t in range(1, 4):
        rule_library.apply(rule, ours.theta, ours.slots, ours.gradient, **ours.settings(t=t))
        reference.apply(rule, theirs.theta, theirs.slots, theirs.gradient, learning_rate=0.1, t=t)
    start = Tensor(rule, 37, "float64")
    for actual, expected, origin in zip(ours.arrays(), theirs.arrays(), start.arrays()):
        assert_close(actual, expected, origin, units=32)


@every_rule
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lazy_rows_leave_the_others(rule, weight_decay):
    rows = np.array([4, 0, 4, 6, 4], np.int64)
    values = np.random.default_rng(1).normal(size=(5, 3))
    ours, theirs, start = (Tensor(rule, (8, 3), "float64") for _ in range(3))
    settings = ours.settings(weight_decay=weight_decay)
    rule_library.apply_rows(rule, ours.theta, ours.slots, rows, values, **settings, is_lazy=True)
    settings = {"learning_rate": 0.1, "t": 3, "weight_decay": weight_decay, "is_lazy": True}
    reference.apply_rows(rule, theirs.theta, theirs.slots, rows, values, **settings)
    others = [1, 2, 3, 5, 7]
    for actual, expected, origin in zip(ours.arrays(), theirs.arrays(), start.arrays()):
        assert_close(actual, expected, origin, units=32)
        assert np.array_equal(actual[others], origin[others]) and not np.array_equal(actual, origin)


@every_rule
@pytest.mark.parametrize("is_lazy", [False, True])
def test_distinct_rows_have_the_bits_of_dense_updates(rule, is_lazy):
    by_row, dense = Tensor(rule, (40, 5)), Tensor(rule, (40, 5))
    rows = np.random.default_rng(2).permutation(40)
    arguments = (rows, by_row.gradient[rows])
    rule_library.apply_rows(rule, by_row.theta, by_row.slots, *arguments, **by_row.settings(), is_lazy=is_lazy)
    rule_library.apply(rule, dense.theta, dense.slots, dense.gradient, **dense.settings())
    assert all(np.array_equal(a, b) for a, b in zip(by_row.arrays(), dense.arrays()))


@every_rule
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_touches_only_rows_says_what_happens(rule, weight_decay):
    tensor, start = Tensor(rule, (6, 4), "float64"), Tensor(rule, (6, 4), "float64")
    rows, values = np.array([2], np.int64), np.ones((1, 4))
    settings = tensor.settings(weight_decay=weight_decay)
    rule_library.apply_rows(rule, tensor.theta, tensor.slots, rows, values, **settings)
    others = [0, 1, 3, 4, 5]
    stayed = all(np.array_equal(a[others], b[others]) for a, b in zip(tensor.arrays(), start.arrays()))
    assert rule_library.touches_only_rows(rule, weight_decay) == stayed


@every_rule
def test_is_linear_in_gradient_says_what_happens(rule):
    apart, summed, start = (Tensor(rule, (6, 4), "float64") for _ in range(3))
    rows = np.array([2, 2], np.int64)
    values = np.stack([np.linspace(-3, 1, 4), np.linspace(1, 2, 4)])
    settings = apart.settings()
    rule_library.apply_rows(rule, apart.theta, apart.slots, rows, values, **settings)
    rule_library.apply_rows(rule, summed.theta, summed.slots, rows[:1], values.sum(0)[None], **settings)
    pairs = zip(apart.arrays(), summed.arrays(), start.arrays())
    equal = all(np.allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(c).max()) for a, b, c in pairs)
    assert rule_library.is_linear_in_gradient(rule) == equal


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_a_large_table_is_not_swept(name):
    def resident_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    parameters = {"sgd": (0.0,), "adagrad": (0.0, 1e-7)}[name]
    rule = Rule(name, parameters)
    theta = np.zeros((500_000, 64), np.float32)  # 128 MB, of which only what is written to takes memory
    slots = [np.zeros_like(theta) for _ in rule.slot_names]
    rows = np.arange(0, 64, dtype=np.int64) * 3  # close together: the system may give memory by 2 MB
    values = np.ones((64, 64), np.float32)
    settings = {"learning_rate": 1.0, "t": 1, "scalars": rule_library.make_scalars(rule)}
    before = resident_bytes()
    rule_library.apply_rows(rule, theta, slots, rows, values, **settings)
    assert resident_bytes() - before < 32e6
    assert np.allclose(theta[rows], -1)


_HASH_OF_ALL_RULES = """
import hashlib, sys
import numpy as np
from tests.parameter_server.test_rules_native import RULES, Tensor
from tfdist.parameter_server import reference, rule_library, rules
digest = hashlib.sha256()
for dtype in ("float32", "float64"):
    for rule in RULES.values():
        for size in (1, 61):
            dense, by_row = Tensor(rule, size, dtype), Tensor(rule, (size, 5), dtype)
            rule_library.apply(rule, dense.theta, dense.slots, dense.gradient, **dense.settings(weight_decay=0.1))
            rows = np.arange(size) // 2
            rule_library.apply_rows(rule, by_row.theta, by_row.slots, rows, by_row.gradient, **by_row.settings())
            for array in (*dense.arrays(), *by_row.arrays()):
                digest.update(array.tobytes())
print(digest.hexdigest(), any(name in sys.modules for name in ("tensorflow", "keras")))
"""


def test_instruction_sets_give_equal_bits_and_need_no_tensorflow():
    outputs = set()
    for name in ("baseline", "avx2", "avx512"):
        environment = {**os.environ, "TFDIST_INSTRUCTION_SET": name}
        command = [sys.executable, "-c", _HASH_OF_ALL_RULES]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        outputs.add(result.stdout)
    assert len(outputs) == 1 and outputs.pop().endswith("False\n")


def test_nadam_catches_up_after_updates_without_this_tensor():
    rule = make_rule("nadam", beta_1=0.9, beta_2=0.99, epsilon=1e-3)
    stepwise, at_once = rule_library.make_scalars(rule), rule_library.make_scalars(rule)
    theta, slots = np.zeros(3), [np.zeros(3), np.zeros(3)]
    for t in range(1, 8):
        rule_library.apply(rule, theta, slots, np.ones(3), learning_rate=0.1, t=t, scalars=stepwise)
    rule_library.apply(rule, theta, slots, np.ones(3), learning_rate=0.1, t=7, scalars=at_once)
    assert np.array_equal(stepwise, at_once) and stepwise[2] == 7
    assert stepwise[0] == pytest.approx(np.prod(0.9 * (1 - 0.5 * 0.96 ** np.arange(1.0, 8))), rel=1e-14)


@pytest.mark.parametrize(
    "arguments, text",
    [
        (("lamb", ()), "The kind of a rule was expected to be one of add, sgd.*Received: kind='lamb'"),
        (("sgd", ()), "expected to have 1 finite parameters"),
        (("sgd", (float("nan"),)), "expected to have 1 finite parameters"),
        (("sgd", (0.9,), ("amsgrad",)), "The flags of rule 'sgd' were expected to be among"),
    ],
)
def test_bad_rules_are_refused(arguments, text):
    with pytest.raises(ConfigurationError, match=text):
        Rule(*arguments)


def test_bad_hyperparameters_are_refused():
    with pytest.raises(ConfigurationError, match="was expected to have the parameters"):
        make_rule("sgd", epsilon=1.0)
    with pytest.raises(ConfigurationError, match="Updates are counted from t=1"):
        reference.apply(make_rule("add"), np.zeros(2), [], np.zeros(2), learning_rate=1.0, t=0)


@pytest.mark.parametrize(
    "changed, text",
    [
        ({"theta": np.zeros(4, np.float16)}, "expected to be float32 or float64"),
        ({"theta": np.float64(0)}, "NumPy arrays were expected, to be updated in place"),
        ({"slots": []}, "Slots .*momentum.* were expected"),
        ({"slots": [np.zeros(3)]}, "Slots .*momentum.* were expected"),
        ({"slots": [np.zeros(4, np.float32)]}, "Contiguous arrays of float64 were expected"),
        ({"gradient": np.zeros(8)[::2]}, "Contiguous arrays of float64 were expected"),
        ({"gradient": np.zeros(5)}, "expected to have the parameters' shape"),
        ({"t": 0}, "counted from t=1"),
        ({"scalars": np.zeros(2)}, "4 float64 scalars were expected"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changed, text):
    arguments = {"theta": np.zeros(4), "slots": [np.zeros(4)], "gradient": np.zeros(4), "t": 1, "scalars": np.zeros(4)}
    with pytest.raises(ConfigurationError, match=text):
        rule_library.apply(make_rule("sgd", momentum=0.9), **{**arguments, **changed}, learning_rate=0.1)


@pytest.mark.parametrize(
    "rows, values, text",
    [
        (np.array([0, 3]), np.zeros((2, 2)), "Indices of rows were expected in 0 ... 2. Received: 0 ... 3"),
        (np.array([-1]), np.zeros((1, 2)), "Indices of rows were expected"),
        (np.array([0], np.int32), np.zeros((1, 2)), "int64 indices and one row of shape"),
        (np.array([0, 1]), np.zeros((1, 2)), "int64 indices and one row of shape"),
        (np.array([0]), np.zeros((1, 3)), "int64 indices and one row of shape"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows, values, text):
    with pytest.raises(ConfigurationError, match=text):
        settings = {"learning_rate": 0.1, "t": 1, "scalars": np.zeros(4)}
        rule_library.apply_rows(make_rule("add"), np.zeros((3, 2)), [], rows, values, **settings)


def test_the_native_core_checks_for_itself():
    core = rule_library.library()
    theta, scalars, rows = np.zeros(4), np.zeros(4), np.array([4])
    state = scalars.ctypes.data_as(rule_library._DOUBLES)

    def code(kind=1, flags=0, momentum=0.0, dtype=2, t=1, address=theta.ctypes.data, n=4):
        rule = rule_library.NativeRule(kind, flags, (momentum,))
        return core.tfdist_rule_apply(rule, dtype, 0.1, 0.0, t, state, address, None, theta.ctypes.data, n)

    assert code() == 0
    bad = [{"kind": 10}, {"kind": -1}, {"flags": 2}, {"momentum": float("inf")}, {"momentum": 0.9}, {"dtype": 3}]
    for change in [*bad, {"t": 0}, {"address": None}, {"n": -1}]:
        assert code(**change) == -5, change
    rule = rule_library.NativeRule(1, 0)
    arguments = (rule, 2, 0.1, 0.0, 1, state, theta.ctypes.data, None, rows.ctypes.data, theta.ctypes.data)
    assert core.tfdist_rule_apply_rows(*arguments, 1, 1, 4, 0) == -5
    assert core.tfdist_rule_num_slots(rule_library.NativeRule(11, 0)) == -5


def test_the_table_of_rules_is_complete():
    assert {rule.kind for rule in RULES.values()} == set(PARAMETERS) == set(reference.RULES)
    assert {flag for rule in RULES.values() for flag in rule.flags} == {
        flag for flags in FLAGS.values() for flag in flags
    }
    assert rules.Rule("add").slot_names == ()
