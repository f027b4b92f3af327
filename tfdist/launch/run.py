"""`tfdist run`: checks what was asked for, then starts the job."""

import dataclasses
import difflib
import importlib.util
import os

from tfdist.cluster import tls, variables
from tfdist.cluster.address import parse_address
from tfdist.errors import ConfigurationError
from tfdist.launch import local
from tfdist.launch.job import Job
from tfdist.launch.parser import Parser, count, seconds, split_command
from tfdist.launch.restarts import RestartRules
from tfdist.testing import FaultInjector
from tfdist.testing.fault import from_environment

WITH_SERVERS = ("async", "sync", "bounded")
# Those of tfdist.strategies.registry, which takes seconds to import TensorFlow.
STRATEGIES = ("ring", *WITH_SERVERS, "mirrored")
_GRACE_SECONDS = 10.0  # where a worker may be at a checkpoint
_EPILOG = """\
examples:
  tfdist run -n 4 train.py --epochs 3
  tfdist run -n 2 --strategy ring -m my_package.train
  tfdist run -n 4 --strategy async --servers 2 --summary train.py
  tfdist run -n 8 --nodes 2 --node-rank 0 --address 10.0.0.1:2222 train.py    (on each node, with its rank,
                                                                 and the same TFDIST_SECRET on both)
"""


def main(arguments):
    """Runs the subcommand; returns the exit code."""
    job = parse(arguments)
    os.environ.update({name: value for name, value in job.variables.items() if name.startswith("TFDIST_TLS")})
    tls.check(os.environ)
    return local.start(job)


def parse(arguments, environ=os.environ):
    """Returns the `Job` that a command line asks for.

    Raises:
      ConfigurationError: it cannot be started; one line says why.
    """
    parser = _parser()
    options, command = split_command(parser, arguments)
    chosen = parser.parse_args(options)
    if not command:
        raise ConfigurationError(f"a script is expected. Received: none. See `{parser.prog} --help`.")
    _check_variables(environ)
    _check_command(command)
    _check_nodes(chosen)
    added = {}
    if chosen.timeout is not None:
        added["TFDIST_TIMEOUT"] = f"{chosen.timeout:g}"
    if chosen.inject:
        added.update(_faults(chosen.inject, max(chosen.num_workers * chosen.nodes, chosen.max_workers or 0)))
    added.update(_tls(chosen))
    strategy = chosen.strategy or environ.get("TFDIST_STRATEGY", "")
    if strategy:
        _check_strategy(strategy, chosen.num_workers * chosen.nodes, chosen.servers)
        added["TFDIST_STRATEGY"] = strategy
    job = Job(
        command=tuple(command),
        num_workers=chosen.num_workers,
        num_nodes=chosen.nodes,
        node_rank=chosen.node_rank,
        address=chosen.address,
        variables=added,
        num_servers=chosen.servers or 0,
        summary=chosen.summary,
        max_workers=chosen.max_workers,
        restarts=_restart_rules(chosen, environ),
    )
    seconds_to_end = chosen.grace_seconds or (job.grace_seconds if job.restarts is None else _GRACE_SECONDS)
    return dataclasses.replace(job, grace_seconds=seconds_to_end)


def _parser():
    parser = Parser(
        prog="tfdist run",
        usage="tfdist run [-n N] [options] script.py [argument ...]\n       tfdist run [-n N] [options] -m module ...",
        description="Starts a script on N workers of this host. A worker that is killed is started again while the others\n"
        "go on; the first whose script fails ends the job.",
        epilog=_EPILOG,
    )
    parser.add_argument("-n", "--num-workers", type=count(1), default=2, metavar="N",
                        help="workers on this host (2)")  # fmt: skip
    parser.add_argument("--strategy", metavar="NAME", help="what tfdist.strategy() makes, such as ring")
    parser.add_argument("--servers", type=count(1), metavar="K",
                        help="parameter servers, on node 0; with --nodes the same on all (as the strategy likes)")  # fmt: skip
    parser.add_argument("--summary", action="store_true", help="tell at the end what the parameter servers counted")
    parser.add_argument(
        "--min-workers", type=count(1), metavar="A", help="fewer than these on all hosts end the job (1)"
    )
    parser.add_argument("--max-workers", type=count(1), metavar="B",
                        help="places on all hosts: SIGUSR1 to this command adds a worker (as many as there are workers)")  # fmt: skip
    parser.add_argument("--max-restarts", type=count(0), default=3, metavar="R", help="restarts of each worker (3)")
    parser.add_argument("--no-recover", action="store_true", help="the first worker that is lost ends the job")
    parser.add_argument("--grace-seconds", type=seconds, metavar="S",
                        help="to end, after SIGTERM to this command (10; 3 with --no-recover)")  # fmt: skip
    parser.add_argument("--timeout", type=seconds, metavar="S", help="seconds that a worker waits for the others")
    parser.add_argument("--inject", metavar="FAULTS", help='for tests, such as "kill:rank=1,step=3"')
    parser.add_argument("--tls", action="store_true", help="encrypt every connection; the same on all nodes")
    for name, what in (("cert", "certificate"), ("key", "key"), ("ca", "authority's certificate")):
        text = f"this host's {what}, with --tls (drawn by each process)"
        parser.add_argument(f"--tls-{name}", metavar="FILE", help=text)
    parser.add_argument("--nodes", type=count(1), default=1, metavar="K", help="hosts that run this command (1)")
    parser.add_argument("--node-rank", type=count(0), default=0, metavar="I", help="this host's number, from 0 (0)")
    parser.add_argument("--address", metavar="HOST:PORT", help="of node 0; needed with --nodes")
    return parser


def _tls(chosen):
    """Returns the variables that say how connections are encrypted."""
    files = {"CERT": chosen.tls_cert, "KEY": chosen.tls_key, "CA": chosen.tls_ca}
    given = {f"TFDIST_TLS_{name}": os.path.abspath(path) for name, path in files.items() if path}
    if given and not chosen.tls:
        raise ConfigurationError("--tls is expected with --tls-cert, --tls-key and --tls-ca. Received: none. Add it.")
    return {"TFDIST_TLS": "1", **given} if chosen.tls else {}


def _restart_rules(chosen, environ):
    """Returns the `RestartRules`, or None where the first loss ends the job."""
    num_workers = chosen.num_workers * chosen.nodes
    floor = chosen.min_workers or variables.min_workers(environ)
    if floor > num_workers:
        raise ConfigurationError(
            f"--min-workers is expected to be at most the number of workers. Received: --min-workers {floor}, "
            f"{num_workers} workers. Start more, or lower it."
        )
    places = chosen.max_workers
    if places is not None and (places < num_workers or places % chosen.nodes):
        raise ConfigurationError(
            f"--max-workers is expected to be a multiple of --nodes and at least the number of workers. "
            f"Received: --max-workers {places}, {num_workers} workers, --nodes {chosen.nodes}. Correct it."
        )
    if chosen.no_recover or not variables.recover(environ):
        return None
    return RestartRules(chosen.max_restarts, floor)


def _faults(text, world_size):
    injector = FaultInjector.parse(text)
    for fault in injector.faults:
        if fault.rank >= world_size:
            raise ConfigurationError(
                f"the rank of a fault is expected to be less than the number of workers. Received: --inject {fault}, "
                f"{world_size} workers. Ranks count from 0."
            )
    return injector.environment()


def _check_command(command):
    if command[0] == "-m":
        if len(command) < 2:
            raise ConfigurationError("a module is expected after -m. Received: none. Name one.")
        _check_module(command[1])
        return
    if not os.path.exists(command[0]):
        raise ConfigurationError(
            f"the script is expected to exist. Received: {command[0]!r}, not found from {os.getcwd()}. Check the path."
        )
    if os.path.isdir(command[0]) and not os.path.exists(os.path.join(command[0], "__main__.py")):
        raise ConfigurationError(
            f"a script is expected. Received: {command[0]!r}, a directory without __main__.py. Name a file."
        )


def _check_module(name):
    top = name.partition(".")[0]
    here = any(os.path.exists(os.path.join(os.getcwd(), top + suffix)) for suffix in ("", ".py"))
    if not here and importlib.util.find_spec(top) is None:
        raise ConfigurationError(
            f"a module that can be imported is expected after -m. Received: {name!r}. Check its name and PYTHONPATH."
        )


def _check_nodes(chosen):
    if chosen.node_rank >= chosen.nodes:
        raise ConfigurationError(
            "--node-rank is expected to be less than --nodes. "
            f"Received: --node-rank {chosen.node_rank}, --nodes {chosen.nodes}. Nodes count from 0."
        )
    if chosen.nodes > 1 and not chosen.address:
        raise ConfigurationError(
            f"--address is expected with --nodes {chosen.nodes}. Received: none. "
            "Give node 0's address and a free port there, the same on all nodes."
        )
    if chosen.address:
        parse_address(chosen.address, "--address")


def _check_variables(environ):
    """Refuses variables that every worker would stumble over."""
    variables.timeout(environ)
    variables.port(environ, 1)
    from_environment(environ)
    if environ.get("TFDIST_RANK", ""):
        raise ConfigurationError(
            "TFDIST_RANK is expected not to be set where `tfdist run` starts. "
            f"Received: TFDIST_RANK={environ['TFDIST_RANK']!r}. Do not start `tfdist run` inside a worker; else unset it."
        )
    stray = [name for name in ("TFDIST_WORLD_SIZE", "TFDIST_LOCAL_RANK", "TFDIST_LOCAL_WORLD_SIZE", "TFDIST_STORE",
                         "TFDIST_SERVER", "TFDIST_NUM_SERVERS", "TFDIST_INITIAL_WORKERS", "TFDIST_INCARNATION")
             if environ.get(name, "")]  # fmt: skip
    if stray:
        raise ConfigurationError(
            f"{stray[0]} is expected not to be set where `tfdist run` starts. "
            f"Received: {stray[0]}={environ[stray[0]]!r}. Unset it."
        )


def _check_strategy(name, world_size, num_servers):
    if name not in STRATEGIES:
        close = difflib.get_close_matches(name, STRATEGIES, 1)
        hint = f"Did you mean {close[0]!r}?" if close else "Choose one of them."
        raise ConfigurationError(f"a strategy is expected: {' or '.join(STRATEGIES)}. Received: {name!r}. {hint}")
    if name == "mirrored" and world_size > 1:
        raise ConfigurationError(
            "the strategy mirrored is expected to run in one process: its workers would train unrelated models. "
            f"Received: {world_size} workers. Use -n 1, or --strategy ring."
        )
    if num_servers and name not in WITH_SERVERS:
        raise ConfigurationError(
            f"a strategy with parameter servers is expected with --servers: {' or '.join(WITH_SERVERS)}. "
            f"Received: --servers {num_servers}, strategy {name!r}. Choose one of them, or leave --servers out."
        )
