"""A process that is killed while it writes leaves what it had finished, and the next one goes on."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.checkpoint import killed_writer
from tests.multiprocess import ROOT
from tfdist import checkpoint
from tfdist.checkpoint import disk, folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("killed")
    output = subprocess.run(
        [sys.executable, killed_writer.__file__, directory],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        check=True,
        timeout=100,
    ).stdout
    return directory, [json.loads(line) for line in output.splitlines()]


def test_there_are_at_least_a_hundred_points(killed):
    statuses = [status for status, _ in killed[1]]
    assert len(statuses) > 100 and statuses[-1] == 0
    assert set(statuses[:-1]) == {signal.SIGKILL}


def test_there_is_always_a_whole_checkpoint_and_it_is_the_last_one_finished(killed):
    directory, outcomes = killed
    for point, (_, num_finished) in enumerate(outcomes):
        here = directory / str(point)
        for number in folder.numbers(here):
            checkpoint.verify(folder.path_of(here, number))
        if num_finished == 0 and checkpoint.latest(here) is None:
            continue
        found = checkpoint.load(here)
        # It may have got its name just before the process would have said so.
        assert found.values["number"] in (num_finished - 1, num_finished), point
        for name, array in killed_writer.tensors(found.values["number"]).items():
            assert np.array_equal(found.tensors[name], array)


def test_the_next_process_goes_on_and_cleans_up(killed):
    directory, outcomes = killed
    for point in range(len(outcomes)):
        here = directory / str(point)
        path = checkpoint.write(here, {}, {"by": "the next"}, keep=2)
        assert checkpoint.load(here).path == path
        assert folder.partial_numbers(here) == [] and len(os.listdir(here)) <= 2


def test_the_disk_has_it_before_it_gets_its_name_and_before_others_go(tmp_path, monkeypatch):
    order = []
    for name in killed_writer.OPERATIONS:
        original = getattr(disk, name)
        monkeypatch.setattr(disk, name, lambda *a, name=name, original=original: order.append(name) or original(*a))
    for _ in range(2):
        order.clear()
        checkpoint.write(tmp_path, {}, keep=1)
    assert order == ["create", "write", "write", "write", "flush", "rename", "flush_folder", "remove"]
