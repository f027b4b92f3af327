"""What the command line says to a mistake, and to those who ask for help."""

import ast
import pathlib
import re
import socket

import pytest
from launching import ROOT, tfdist

from tfdist.launch.run import STRATEGIES

BAD = {
    "no worker": (["run", "-n", "0", "x.py"], "an integer >= 1 is expected. Received: '0'"),
    "negative": (["run", "-n", "-1", "x.py"], "-n"),
    "no number": (["run", "-n", "two", "x.py"], "an integer >= 1 is expected. Received: 'two'"),
    "no script": (["run", "-n", "2", "x.py"], "the script is expected to exist. Received: 'x.py'"),
    "nothing": (["run"], "a script is expected. Received: none"),
    "directory": (["run", "."], "a directory without __main__.py"),
    "module": (["run", "-m", "no_such_module_at_all"], "a module that can be imported is expected after -m"),
    "no module": (["run", "-m"], "a module is expected after -m"),
    "strategy": (["run", "--strategy", "rnig", "x.py"], "x.py"),
    "option": (["run", "--workers", "x.py"], "unrecognized arguments: --workers"),
    "timeout": (["run", "--timeout", "0", "x.py"], "a number of seconds > 0 is expected. Received: '0'"),
    "command": (
        ["rum"],
        "a command is expected: run or doctor or bench or simulate. Received: 'rum'. Did you mean 'run'?",
    ),
    "unlike any command": (["xyz"], "See `tfdist --help`"),
    "node": (["run", "--nodes", "2", "--node-rank", "2", "--address", "a:1", __file__], "Received: --node-rank 2"),
    "no address": (["run", "--nodes", "2", __file__], "--address is expected with --nodes 2"),
    "bad address": (["run", "--nodes", "2", "--address", "a", __file__], "--address is expected to be host:port"),
    "too many wanted": (["run", "--min-workers", "3", __file__], "Received: --min-workers 3, 2 workers"),
    "too few places": (["run", "--max-workers", "1", __file__], "Received: --max-workers 1, 2 workers, --nodes 1"),
    "places that cannot be divided": (
        ["run", "-n1", "--max-workers", "3", "--nodes", "2", "--address", "a:1", __file__],
        "--max-workers is expected to be a multiple of --nodes and at least the number of workers. Received: "
        "--max-workers 3, 2 workers, --nodes 2",
    ),
    "a fault that is none": (["run", "--inject", "kill:rank=x", __file__], "rank of kill is expected to be an integer"),
    "a fault of nobody": (
        ["run", "--inject", "kill:rank=2,step=1", __file__],
        "the rank of a fault is expected to be less than the number of workers. Received: --inject kill:rank=2,step=1, 2",
    ),
    "unknown strategy": (["run", "--strategy", "rnig", __file__], "Received: 'rnig'. Did you mean 'ring'?"),
    "no server": (["run", "--servers", "0", __file__], "an integer >= 1 is expected. Received: '0'"),
    "mirrored with servers": (
        ["run", "-n", "1", "--servers", "2", "--strategy", "mirrored", __file__],
        "a strategy with parameter servers is expected with --servers: async or sync or bounded. "
        "Received: --servers 2, strategy 'mirrored'",
    ),
    "ring with servers": (["run", "--servers", "2", "--strategy", "ring", __file__], "--servers 2, strategy 'ring'"),
    "mirrored": (["run", "--strategy", "mirrored", __file__], "mirrored is expected to run in one process"),
}


@pytest.mark.parametrize("row", BAD)
def test_a_mistake_is_one_line_and_exit_code_2(row, tmp_path):
    arguments, text = BAD[row]
    run = tfdist(*arguments, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stdout == "" and run.stderr.count("\n") == 1 and text in run.stderr
    assert re.match(r"tfdist( run)?: ", run.stderr)


@pytest.mark.parametrize(
    "variables, text",
    [
        ({"TFDIST_TIMEOUT": "soon"}, "TFDIST_TIMEOUT is expected to be a number of seconds > 0"),
        ({"TFDIST_RANK": "0"}, "TFDIST_RANK is expected not to be set where `tfdist run` starts"),
        ({"TFDIST_STORE": "a:1"}, "TFDIST_STORE is expected not to be set where `tfdist run` starts"),
        (
            {"TFDIST_STRATEGY": "rings"},
            "a strategy is expected: ring or async or sync or bounded or mirrored. Received: 'rings'",
        ),
        ({"TFDIST_NUM_SERVERS": "2"}, "TFDIST_NUM_SERVERS is expected not to be set where `tfdist run` starts"),
        ({"TFDIST_SERVER": "0"}, "TFDIST_SERVER is expected not to be set where `tfdist run` starts"),
        ({"TFDIST_INCARNATION": "1"}, "TFDIST_INCARNATION is expected not to be set where `tfdist run` starts"),
        ({"TFDIST_INITIAL_WORKERS": "1"}, "TFDIST_INITIAL_WORKERS is expected not to be set where"),
        ({"TFDIST_RECOVER": "yes"}, "TFDIST_RECOVER is expected to be 0 or 1. Received: TFDIST_RECOVER='yes'"),
        ({"TFDIST_MIN_WORKERS": "3"}, "--min-workers is expected to be at most the number of workers"),
        ({"TFDIST_FAULTS": "x"}, "TFDIST_FAULTS is expected to be what FaultInjector.environment() gives"),
        ({"TFDIST_PORT": "70000"}, "TFDIST_PORT is expected to be from 1 to 65535"),
        ({"TFDIST_SECRET": "a", "TFDIST_SECRET_FILE": "b"}, "are expected not to be set both"),
        ({"TFDIST_SECRET_FILE": "/no/such"}, "TFDIST_SECRET_FILE is expected to name a file"),
    ],
)
def test_a_bad_variable_is_one_line_and_exit_code_2(script, variables, text):
    run = tfdist("run", script(""), **variables)
    assert run.returncode == 2
    assert run.stdout == "" and run.stderr.count("\n") == 1 and text in run.stderr


def test_an_address_in_use_is_one_line(script):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        run = tfdist("run", "--nodes", "2", "--address", address, script(""), TFDIST_SECRET="of this test")
    assert run.returncode == 1 and run.stdout == "" and run.stderr.count("\n") == 1
    assert f"The store was expected to listen at {address}. Received: [Errno" in run.stderr


def test_a_secret_in_a_file_stays_there(script, tmp_path):
    (tmp_path / "secret").write_text("of this test")
    path = script("import tfdist; print('TFDIST_SECRET' in os.environ, tfdist.cluster.current().secret)")
    run = tfdist("run", "-n", "2", path, TFDIST_SECRET_FILE=str(tmp_path / "secret"))
    assert sorted(run.stdout.splitlines()) == ["[0] False b'of this test'", "[1] False b'of this test'"], run.stderr


def test_help_is_short():
    for arguments in (["--help"], ["run", "--help"]):
        run = tfdist(*arguments)
        assert run.returncode == 0 and run.stdout.startswith("usage: tfdist") and run.stdout.count("\n") < 45
    assert tfdist().returncode == 2
    assert tfdist("--version").stdout.startswith("tfdist ")


def test_known_strategies_are_those_of_the_registry():
    source = pathlib.Path(ROOT, "tfdist", "strategies", "registry.py").read_text()
    tables = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assign)
              and node.targets[0].id == "_MAKERS"]  # fmt: skip
    assert sorted(key.value for key in tables[0].keys) == sorted(STRATEGIES)
