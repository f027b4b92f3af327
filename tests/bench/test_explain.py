import json

import pytest

from tests.launch.launching import tfdist
from tfdist.bench import explain
from tfdist.collectives import ALL_REDUCE


@pytest.mark.parametrize("other", [["--peers"], ["--limits"], ["--plot", "a.png"], ["--wire-dtype", "bfloat16"]])
def test_what_means_nothing_beside_it_is_refused(other):
    result = tfdist("bench", "all-reduce", "--explain", *other)
    assert result.returncode == 2 and result.stdout == ""
    assert f"--explain is expected without {other[0]}" in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.multiprocess
def test_every_algorithm_has_a_line_and_one_is_chosen():
    result = tfdist("bench", "all-reduce", "--explain", "--bytes", "4,64K", "--rounds", "3", "--json")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["bytes"], line["algorithm"]) for line in lines] == [
        (b, name) for b in (4, 65536) for name in ALL_REDUCE
    ]
    for line in lines:
        assert line["nproc"] == 2 and line["seconds_predicted"] > 0 and line["seconds_median"] > 0
        assert line["ratio"] == pytest.approx(line["seconds_median"] / line["seconds_predicted"])
    for num_bytes in (4, 65536):
        assert sum(line["chosen"] for line in lines if line["bytes"] == num_bytes) == 1


@pytest.mark.multiprocess
def test_the_table_says_what_was_measured_and_what_is_forced():
    result = tfdist("bench", "all-reduce", "--explain", "--bytes", "4K", "--rounds", "3", "--algorithm", "direct")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[1].startswith("measured: latency ") and "all-reduce by direct, as chosen for every size" == lines[2]
    assert [line.split()[0] for line in lines[3:]] == ["algorithm", *ALL_REDUCE]
    assert [line.split()[0] for line in lines if line.endswith("chosen")] == ["direct"]


@pytest.mark.multiprocess
def test_ranks_that_end_are_one_line():
    result = tfdist("bench", "all-reduce", "--explain", "--bytes", "4", "--algorithm", "rings")
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert "TFDIST_ALGORITHM is expected to be one of ring" in result.stderr


def test_the_ratio_is_of_measured_to_predicted():
    assert explain.Row("ring", 2, 4096, 2e-6, 3e-6, True).ratio == pytest.approx(1.5)
