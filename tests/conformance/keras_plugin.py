"""A pytest plugin that runs the test files in Keras's own wheel under a strategy of tfdist.

    python -m pytest -p tests.conformance.keras_plugin --pyargs keras.src.trainers.trainer_test
    python -m tfdist run -n 2 -m pytest -p tests.conformance.keras_plugin --pyargs keras.src.trainers.trainer_test

On several workers all ranks run the same tests in the same order. A barrier follows every test; where it fails the group is
beyond use and the session ends with exit code `GROUP_LOST`, to be started again behind the test at fault (`keras_suite`).
A test that lasts too long ends its process, with the stacks of all threads on stderr.
"""

import faulthandler
import importlib.util
import json
import sys
import types
import zlib
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from keras.src.testing import test_case  # imported before the stand-in for jax, which would look like an installed one
from keras.src.trainers import trainer

import tfdist
from tests.conformance import keras_exceptions, keras_replicas, shared_folders

GROUP_LOST = 17
_BARRIER_SECONDS = 60.0
_DISTRIBUTE_TESTS = ("distribute_test", "optimizer_distribute_test", "swap_ema_weights_test")


def pytest_addoption(parser):
    group = parser.getgroup("tfdist conformance")
    group.addoption("--strategy", default="ring", help="what tfdist.use() is given, or 'none'")
    group.addoption("--outcomes", help="a file that gets one line of JSON per test")
    group.addoption("--collected", help="a file that gets a JSON list of the tests to run")
    group.addoption("--only", help="a file with a JSON list of the tests to run")
    group.addoption("--folder", help="a folder that all workers share, for the files that tests write")
    group.addoption("--test-timeout", type=float, default=100.0, help="seconds that a test may last")


def pytest_configure(config):
    config.addinivalue_line("markers", "requires_trainable_backend: Keras's own")
    if importlib.util.find_spec("jax") is None:
        sys.modules["jax"] = types.ModuleType("jax")  # trainer_test imports it, the tests for TensorFlow do without
    config.pluginmanager.register(_Session(config), "tfdist-conformance-session")


def test_id(item):
    """Returns "trainers.trainer_test::TestTrainer::test_fit"."""
    module = item.module.__name__.removeprefix("keras.src.")
    return "::".join([module, *([item.cls.__name__] if item.cls else []), item.name])


class _Session:
    """What one worker does around the tests."""

    def __init__(self, config):
        self._outcomes = config.getoption("--outcomes")
        self._only = config.getoption("--only")
        self._timeout = config.getoption("--test-timeout")
        self._strategy = None
        name = config.getoption("--strategy")
        if name != "none":
            self._strategy = tfdist.use(name)
            if self._leaves_the_process():
                keras_replicas.apply_inside_of_run(self._strategy)
                trainer.Trainer.jit_compile = property(
                    lambda model: False, lambda model, value: None
                )  # refused otherwise
            test_case.clear_session = (
                keras.utils.clear_session
            )  # the one that keeps the strategy; test_case has the other
            shared_folders.install(config.getoption("--folder"), self._strategy)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config, items):
        if self._only:
            wanted = set(json.loads(Path(self._only).read_text()))
            config.hook.pytest_deselected(items=[item for item in items if test_id(item) not in wanted])
            items[:] = [item for item in items if test_id(item) in wanted]
        if self._strategy is not None:
            left_out = keras_exceptions.of(self._strategy)
            items[:] = [item for item in items if test_id(item) not in left_out and not self._is_refused(item)]
        if config.getoption("--collected"):
            Path(config.getoption("--collected")).write_text(json.dumps([test_id(item) for item in items]))
        if self._strategy is not None:
            for module in {item.module for item in items}:
                if module.__name__.rpartition(".")[2] in _DISTRIBUTE_TESTS:
                    keras_replicas.adapt(module)

    def _leaves_the_process(self):
        """Whether gradients go to other workers or to servers."""
        return self._strategy.world_size > 1 or self._strategy.uses_servers

    def _is_refused(self, item):
        """Whether a test asks for XLA where gradients leave the process; its twin without runs."""
        return self._leaves_the_process() and item.name.endswith("_jit") and not item.name.endswith("_non_jit")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self._write(item, "running")
        shared_folders.enter(None if test_id(item) in keras_exceptions.OWN_FOLDERS else test_id(item))
        faulthandler.dump_traceback_later(self._timeout, exit=True)
        keras.utils.set_random_seed(zlib.crc32(test_id(item).encode()))  # tests draw their data: alike on all workers
        self._outcome, self._text = "passed", ""
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._check_strategy()
            self._write(item, self._outcome, self._text)
            self._meet()

    def pytest_runtest_logreport(self, report):
        if report.outcome != "passed" and self._outcome == "passed":
            self._outcome, self._text = report.outcome, str(report.longrepr)[-3000:]

    def _check_strategy(self):
        if self._strategy is not None and tf.distribute.get_strategy() is not self._strategy:
            tf.distribute.experimental_set_strategy(self._strategy)
            self._outcome, self._text = "failed", "The test ran without the strategy: something dropped it."

    def _meet(self):
        if self._strategy is None or self._strategy.world_size == 1:
            return
        try:
            self._strategy.worker_group.barrier(name="end of test", timeout=_BARRIER_SECONDS)
        except tfdist.errors.TfdistError as error:
            pytest.exit(f"The group is lost: {error}", returncode=GROUP_LOST)

    def _write(self, item, outcome, text=""):
        if self._outcomes:
            with open(self._outcomes, "a") as file:
                file.write(json.dumps({"test": test_id(item), "outcome": outcome, "text": text}) + "\n")
