"""`tfdist bench limits`: what this machine allows at all, the yardstick beside which a library is judged."""

import contextlib
import functools
import json
import sys

from tfdist.bench import machine, options, peers, table
from tfdist.bench.rounds import measure
from tfdist.errors import ConfigurationError
from tfdist.launch.parser import Parser, count, seconds

_MAX_RANKS = 64
_SIZES = "4,4K,64K,1M,16M,64M,100000000"
_LOCAL = {"memcpy": "memcpy", "add": "a += b"}  # every rank by itself
_TOGETHER = {"shm": "all-reduce, staged shared memory", "tcp": "all-reduce traffic, TCP (reno)"}


def main(arguments):
    """Runs the subcommand; returns the exit code."""
    chosen = _parser().parse_args(arguments)
    if not 1 <= chosen.world_size <= _MAX_RANKS:
        raise ConfigurationError(
            f"--world-size is expected to be from 1 to {_MAX_RANKS}. Received: {chosen.world_size}. Choose another."
        )
    probes = {**_LOCAL, **(_TOGETHER if chosen.world_size > 1 else {})}
    crews = [functools.partial(peers.limit_crew, limit=limit, name=name) for limit, name in probes.items()]
    setting = peers.Setting(world_size=chosen.world_size)
    warnings = []
    if not chosen.json:
        table.write(f"limits, {setting.world_size} ranks at the same time: {machine.describe()}")
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(crew(setting)) for crew in crews]
        rows = []
        for num_bytes in chosen.bytes:
            rows += measure(opened, num_bytes, rounds=chosen.rounds, seconds=chosen.seconds, warn=warnings.append)
    for line in _lines(rows, chosen.json):
        table.write(line)
    for warning in warnings:
        sys.stderr.write(f"tfdist bench: {warning}\n")
    return 0 if len(opened) == len(crews) else 1


def throughput(row):
    """Returns GB/s: for what each rank does by itself, the bytes of all ranks' arrays over time; else the bus bandwidth."""
    if row.peer in _LOCAL.values():
        return row.nproc * row.bytes / row.seconds_median / 1e9
    return row.busbw_gbps


def _lines(rows, as_json):
    if as_json:
        return [
            json.dumps({"limit": row.peer, "nproc": row.nproc, "bytes": row.bytes,
                        "seconds_median": row.seconds_median, "GBps": throughput(row)})
            for row in rows
        ]  # fmt: skip
    cells = [(row.peer, table.size(row.bytes), table.duration(row.seconds_median), f"{throughput(row):.3g}")
             for row in rows]  # fmt: skip
    return table.align(("limit", "bytes", "time", "GB/s"), cells)


def _parser():
    parser = Parser(
        prog="tfdist bench limits",
        usage="tfdist bench limits [--world-size N] [--bytes A,B,...] [options]",
        description="memcpy and a += b by every rank at the same time (GB/s of all arrays); the all-reduce through staged "
        "shared memory and the traffic of one over TCP (bus bandwidth). Needs g++.",
    )
    add = parser.add_argument
    add("--world-size", type=count(1), default=2, metavar="N", help="ranks (2)")
    add("--bytes", type=options.sizes, default=_SIZES, metavar="A,B,...", help=f"buffer sizes ({_SIZES})")
    add("--rounds", type=count(3), default=15, metavar="R", help="turns of each probe at each size (15)")
    add("--seconds", type=seconds, metavar="S", help="stop a size's rounds after so long, the third at the earliest")
    add("--json", action="store_true", help="for programs: one line a probe and size")
    return parser
