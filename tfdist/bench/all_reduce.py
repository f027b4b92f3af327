"""`tfdist bench all-reduce`: verifies the sums, then times tfdist, other libraries and the machine's limit in turns."""

import contextlib
import functools
import sys

from tfdist.bench import explain, machine, options, peers, table
from tfdist.bench.crew import CrewFailedError
from tfdist.bench.rounds import measure
from tfdist.errors import ConfigurationError
from tfdist.launch.parser import Parser, count, seconds

_MAX_RANKS = 64  # the yardstick's windows, and sums that float32 holds exactly
_COLUMN = 10
_SIZES = "4,4K,64K,1M,16M,100000000"
_EPILOG = """\
examples:
  tfdist bench all-reduce --world-size 2
  tfdist bench all-reduce --world-size 4 --bytes 4K,1M,16M --limits --peers
  tfdist bench all-reduce --world-size 2 --transport tcp --wire-dtype bfloat16 --json
busbw = bytes / seconds * 2 (n - 1) / n, as in nccl-tests. README.md beside this command's source says more.
"""


def main(arguments):
    """Runs the subcommand; returns the exit code: 1 where somebody failed."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if not 2 <= chosen.world_size <= _MAX_RANKS:
        raise ConfigurationError(
            f"--world-size is expected to be from 2 to {_MAX_RANKS}. Received: {chosen.world_size}. Choose another."
        )
    if chosen.explain:
        explain.check(chosen)
    if chosen.plot:
        table.check_plot(chosen.plot)
    setting = peers.Setting(
        world_size=chosen.world_size,
        transport=chosen.transport,
        algorithm=chosen.algorithm,
        wire_dtype=chosen.wire_dtype,
        peer_python=options.find_interpreter(chosen.peer_python),
    )
    if chosen.explain:
        return explain.run(chosen, setting)
    return run(chosen, setting, _crews(chosen, setting))


def run(chosen, setting, crews):
    """Measures all sizes with the given crews.

    Args:
      chosen: the parsed options.
      setting: a `peers.Setting`.
      crews: list of functions from it to a context manager of a `Crew`.

    Returns:
      The exit code.
    """
    rows = []

    def warn(text):
        sys.stderr.write(f"tfdist bench: {' '.join(text.split())}\n")
        sys.stderr.flush()

    title = f"all-reduce of float32, {setting.world_size} ranks: {machine.describe()}"
    if not chosen.json:
        table.write(title)
    with contextlib.ExitStack() as stack:
        opened = _open(stack, crews, setting, warn)
        for num_bytes in chosen.bytes:
            found = measure(opened, num_bytes, rounds=chosen.rounds, seconds=chosen.seconds, warn=warn)
            rows += found
            _show(found, chosen.json, first=num_bytes == chosen.bytes[0])
    if chosen.plot and rows:
        table.plot(chosen.plot, rows, title)
    return 0 if len(opened) == len(crews) else 1  # those that failed are gone


def _crews(chosen, setting):
    """Returns functions from the setting to the crews asked for."""
    crews = [peers.tfdist_crew]
    if chosen.limits:
        limit = "tcp" if chosen.transport == "tcp" else "shm"
        crews.append(functools.partial(peers.limit_crew, limit=limit))
    if chosen.peers:
        others, missing = peers.installed(setting)
        crews += others
        for line in missing:
            sys.stderr.write(f"tfdist bench: {line}\n")
    return crews


def _open(stack, crews, setting, warn):
    opened = []
    for crew in crews:
        try:
            opened.append(stack.enter_context(crew(setting)))
        except CrewFailedError as error:
            warn(str(error))
    return opened


def _show(rows, as_json, first):
    if as_json:
        for row in rows:
            table.write(table.all_reduce_json(row))
        return
    # Sizes appear as they are done, so the width of a column cannot be known.
    lines = table.align(table.all_reduce_header(any(map(table.is_limit, rows))), table.all_reduce_rows(rows), _COLUMN)
    table.write("\n".join([*([] if first else [""]), *lines[0 if first else 1 :]]))


def _parser():
    parser = Parser(
        prog="tfdist bench all-reduce",
        usage="tfdist bench all-reduce [--world-size N] [--bytes A,B,...] [options]",
        description="Verifies the sum of every element on every rank, then times in-place all-reduces of float32.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("--world-size", type=count(1), default=2, metavar="N", help="ranks of each library on this host (2)")
    add("--bytes", type=options.sizes, default=_SIZES, metavar="A,B,...", help=f"buffer sizes ({_SIZES})")
    add("--transport", choices=("shm", "tcp"), help="shared memory or TCP (each library's own choice)")
    add("--algorithm", metavar="NAME", help="tfdist's algorithm (its own choice)")
    add("--wire-dtype", type=options.wire_dtype, metavar="DTYPE", help="what tfdist sends, such as bfloat16 (float32)")
    add("--limits", action="store_true", help="beside what this machine allows; needs g++")
    options.add_peer_options(parser)
    add("--rounds", type=count(3), default=15, metavar="R", help="turns of each library at each size (15)")
    add("--seconds", type=seconds, metavar="S", help="stop a size's rounds after so long, the third at the earliest")
    add("--explain", action="store_true", help="every algorithm of tfdist, as predicted and as measured")
    add("--json", action="store_true", help="for programs: one line a library and size")
    add("--plot", metavar="FILE", help="draw the times; needs matplotlib")
    return parser
