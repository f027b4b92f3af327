"""`tfdist bench push-pull`: what one exchange with a parameter server costs, beside copies of as many bytes."""

import contextlib
import dataclasses
import functools
import json
import sys

from tfdist.bench import machine, options, peers, table
from tfdist.bench.ratio import median_ratio
from tfdist.bench.rounds import measure
from tfdist.launch.parser import Parser, count, seconds

_SIZES = "1000000,16000000,100000000"
_COPIES = "two copies"
_TRAFFIC = "tcp, nothing done"
_NAMES = {"shm": "push-pull, shared memory", "tcp": "push-pull, tcp"}
_LIMITS = {_NAMES["shm"]: _COPIES, _NAMES["tcp"]: _TRAFFIC}  # beside what each is judged


def main(arguments):
    """Runs the subcommand; returns the exit code: 1 where somebody failed."""
    return run(_parser().parse_args(arguments))


def run(chosen):
    """Measures all sizes; returns the exit code."""
    setting = peers.Setting(world_size=1)
    if not chosen.json:
        table.write(f"push and pull of float32 by one worker, one server, plain SGD: {machine.describe()}")
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(crew(setting)) for crew in _crews(chosen.transport)]
        num_crews = len(opened)
        for num_bytes in chosen.bytes:
            rows = measure(opened, num_bytes, rounds=chosen.rounds, seconds=chosen.seconds, warn=_warn)
            _show(list(map(_as_two_copies, rows)), chosen.json, first=num_bytes == chosen.bytes[0])
    return 0 if len(opened) == num_crews else 1


def _crews(transport):
    crews = []
    for name in [transport] if transport else _NAMES:
        crews.append(functools.partial(_crew, transport=name))
        if name == "tcp":
            crews.append(_traffic)
    return [*crews, functools.partial(peers.limit_crew, limit="memcpy", name=_COPIES)]


def _crew(setting, transport):
    setting = dataclasses.replace(setting, transport=transport)
    return peers.tfdist_crew(setting, peers.PROGRAMS / "rank_push_pull.py", name=_NAMES[transport], num_servers=1)


def _traffic(setting):
    """Two processes that send each other as many bytes."""
    return peers.limit_crew(dataclasses.replace(setting, world_size=2), limit="tcp", name=_TRAFFIC)


def _warn(text):
    sys.stderr.write(f"tfdist bench: {' '.join(text.split())}\n")
    sys.stderr.flush()


def _as_two_copies(row):
    """The probe copies once; a push and a pull are two copies at least."""
    if row.peer != _COPIES:
        return row
    rounds = tuple(2 * value for value in row.rounds)
    return dataclasses.replace(row, seconds_median=2 * row.seconds_median, rounds=rounds)


def throughput(row):
    """Returns GB/s, of the bytes that go and those that come."""
    return 2 * row.bytes / row.seconds_median / 1e9


def _show(rows, as_json, first):
    by_name = {row.peer: row for row in rows}
    ratios = {name: median_ratio(by_name[name].rounds, by_name[limit].rounds)
              for name, limit in _LIMITS.items() if name in by_name and limit in by_name}  # fmt: skip
    if as_json:
        for row in rows:
            table.write(json.dumps(as_dict(row, ratios.get(row.peer))))
        return
    cells = [
        (row.peer, table.size(row.bytes), table.duration(row.seconds_median), f"{throughput(row):.3g}",
         _LIMITS.get(row.peer, ""), "{:.2f} (<{:.2f})".format(*ratios[row.peer]) if row.peer in ratios else "")
        for row in rows
    ]  # fmt: skip
    lines = table.align(("", "bytes", "time", "GB/s", "beside", "ratio (95 %)"), cells)
    table.write("\n".join(lines if first else ["", *lines[1:]]))


def as_dict(row, ratio):
    """Returns what is printed as a line of JSON; `ratio` is `(median, bound)` or None for a yardstick."""
    return {
        "variant": row.peer,
        "bytes": row.bytes,
        "seconds_median": row.seconds_median,
        "GBps": throughput(row),
        "ratio_to_limit": ratio and ratio[0],
    }


def _parser():
    parser = Parser(
        prog="tfdist bench push-pull",
        usage="tfdist bench push-pull [--bytes A,B,...] [--transport shm|tcp] [options]",
        description="Verifies every element of two updates, then times: gradients to one parameter server, plain SGD there, "
        "parameters back in their place. Beside two copies of as many bytes, and TCP that carries as many. Needs g++.",
    )
    add = parser.add_argument
    add("--bytes", type=options.sizes, default=_SIZES, metavar="A,B,...", help=f"sizes of the model ({_SIZES})")
    add("--transport", choices=tuple(_NAMES), help="shared memory or TCP (both)")
    add("--rounds", type=count(3), default=15, metavar="R", help="turns of each at each size (15)")
    add("--seconds", type=seconds, metavar="S", help="stop a size's rounds after so long, the third at the earliest")
    add("--json", action="store_true", help="for programs: one line a variant and size")
    return parser
