import json
import shutil
import sys

import numpy as np
import pytest

from tests.bench.test_serve import _load
from tests.launch.launching import tfdist
from tfdist.bench import push_pull
from tfdist.bench.rounds import Row

KEYS = {"variant", "bytes", "seconds_median", "GBps", "ratio_to_limit"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bytes", "3"], "sizes in bytes"),
        (["--transport", "mpi"], "invalid choice: 'mpi'"),
        (["--rounds", "2"], "an integer >= 3"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    result = tfdist("bench", "push-pull", *arguments)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and message in result.stderr


def test_the_ratio_is_to_two_copies_in_the_same_round(capsys):
    exchange = Row("push-pull, shared memory", 1, 10**6, 3e-3, 50.0, (3e-3, 8e-3, 2e-3))
    copies = push_pull._as_two_copies(Row("two copies", 1, 10**6, 1e-3, 50.0, (1e-3, 2e-3, 1e-3)))
    assert copies.seconds_median == 2e-3 and push_pull._as_two_copies(exchange) is exchange
    push_pull._show([exchange, copies], as_json=True, first=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["ratio_to_limit"] for line in lines] == [1.5, None]
    assert lines[1]["GBps"] == pytest.approx(1.0)


class Server:
    """In the place of client and store: subtracts what it is given, times `error`."""

    def __init__(self, error=1.0):
        self.error, self.names = error, []

    def add_store(self, name, tensors, options):
        self.names.append(name)
        return self

    def write(self, slot, arrays):
        self.theta = arrays[0].copy()

    def begin(self, generation, updates, tell):
        pass

    def exchange(self, gradients, fresh, learning_rate):
        self.theta -= np.float32(self.error * learning_rate) * gradients[0]
        fresh[0][:] = self.theta


def _program(monkeypatch):
    monkeypatch.setitem(sys.modules, "serve", _load("serve"))
    return _load("rank_push_pull")


def test_a_right_update_is_timed(monkeypatch):
    server = Server()
    prepare = _program(monkeypatch).preparing(server)
    array = np.ones(5000, np.float32)
    prepare(array)
    prepare(array)(3)
    assert len(set(server.names)) == 2 and np.isfinite(array).all()


def test_a_wrong_update_has_no_time(monkeypatch):
    prepare = _program(monkeypatch).preparing(Server(error=1.25))
    with pytest.raises(ValueError, match="element 1 of 5000 was expected to be -0.5. Received: -0.625"):
        prepare(np.ones(5000, np.float32))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.multiprocess
def test_all_variants_report():
    result = tfdist("bench", "push-pull", "--bytes", "4,4096,100000", "--rounds", "3", "--json")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len({line["variant"] for line in lines}) == 4 and len(lines) == 12
    assert all(set(line) == KEYS and line["seconds_median"] > 0 for line in lines)
    assert sum(line["ratio_to_limit"] is None for line in lines) == 6
