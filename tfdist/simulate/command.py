"""`tfdist simulate`: a small task trained in virtual time in several modes, side by side."""

import argparse
import functools
import math
import sys

from tfdist.bench import table
from tfdist.errors import ConfigurationError
from tfdist.launch.parser import Parser, count
from tfdist.simulate.network import Network
from tfdist.simulate.server import Rule
from tfdist.simulate.tasks import TeacherTask
from tfdist.simulate.training import train
from tfdist.simulate.workers import constant, slowed, stumbling, varied
from tfdist.staleness import WAITING, WEIGHTINGS, DelayCompensation

_HEADER = ("mode", "gradients/s", "x first", "updates", "staleness", "dropped", "waiting", "seconds", "error")
_EPILOG = """All times are virtual. error: the fraction of test examples that the model gets wrong in the end.
Modes: async, bounded:S (S steps ahead of the slowest at most), sync, sync:B (B backup workers).

example: tfdist simulate --workers 8 --mode async,bounded:4,sync,sync:2 --stragglers 0.05x5"""


def main(arguments):
    """Runs the subcommand; returns the exit code."""
    chosen = _parser().parse_args(arguments)
    rules = [_rule(chosen, mode) for mode in chosen.mode]
    for rule in rules:
        rule.waiting.begin(chosen.workers)  # refuses what does not fit before anything takes time
    results = [_train(chosen, rule) for rule in rules]
    rows = [_row(mode, result, results[0]) for mode, result in zip(chosen.mode, results)]
    sys.stdout.write("\n".join(table.align(_HEADER, rows)) + "\n")
    return 0


def modes(text):
    """An argparse type: "async,bounded:4,sync,sync:2" as a dict of mode -> waiting rule."""
    return {part: _waiting(part) for part in (part.strip() for part in text.split(","))}


def stragglers(text):
    """An argparse type: "0.05x5", a twentieth of the steps takes 5 times as long, as `(fraction, factor)`."""
    return _pair(text, float, lambda fraction: 0 <= fraction < 1, "a fraction and a factor such as 0.05x5")


def slow_workers(text):
    """An argparse type: "1x5", one worker takes 5 times as long for good, as `(number, factor)`."""
    return _pair(text, int, lambda number: number >= 0, "a number of workers and a factor such as 1x5")


def _parser():
    parser = Parser(prog="tfdist simulate", description=__doc__, epilog=_EPILOG)
    number = functools.partial(parser.add_argument, type=float, metavar="X")
    parser.add_argument("--workers", type=count(1), default=8, metavar="N", help="how many (8)")
    parser.add_argument("--mode", type=modes, default="async,bounded:4,sync", metavar="MODE,...",
                        help="what to compare (async,bounded:4,sync)")  # fmt: skip
    parser.add_argument("--stragglers", type=stragglers, default="0x1", metavar="PxK",
                        help="a fraction P of all steps takes K times as long (none)")  # fmt: skip
    parser.add_argument("--slow-workers", type=slow_workers, default="0x1", metavar="NxK",
                        help="N of the workers take K times as long for good (none)")  # fmt: skip
    number("--compute-seconds", default=0.1, help="of a step (0.1)")
    number("--spread", default=0.1, help="by which fraction steps differ, either way (0.1)")
    number("--latency-seconds", default=0.0, help="of a message, one way (0)")
    number("--bytes-per-second", default=math.inf, help="of each worker's link, each way (unlimited)")
    number("--learning-rate", default=0.5, help="(0.5)")
    number("--momentum", default=0.0, help="(0)")
    parser.add_argument("--staleness-weighting", choices=WEIGHTINGS, default="none", help="of a stale step (none)")
    number("--delay-compensation", default=0.0, help="lambda0 of DC-ASGD-a; the paper's is 2 (0: off)")
    parser.add_argument("--gradients", type=count(1), default=2500, metavar="N",
                        help="to train for, of 32 examples each (2500: 8 epochs)")  # fmt: skip
    parser.add_argument("--seed", type=count(0), default=0, metavar="N", help="of data and times (0)")
    return parser


def _waiting(part):
    mode, colon, argument = part.partition(":")
    try:
        return WAITING[mode](*([int(argument)] if colon else []))
    except (KeyError, TypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"modes such as async,bounded:4,sync,sync:2 are expected. Received: {part!r}"
        ) from None


def _pair(text, first_type, is_good, expected):
    first, _, factor = text.partition("x")
    try:
        first, factor = first_type(first), float(factor)
    except ValueError:
        first, factor = -1, math.nan
    if not is_good(first) or not 0 < factor < math.inf:
        raise argparse.ArgumentTypeError(f"{expected} is expected. Received: {text!r}")
    return first, factor


def _rule(chosen, mode):
    lambda0 = chosen.delay_compensation
    return Rule(
        learning_rate=chosen.learning_rate,
        momentum=chosen.momentum,
        waiting=chosen.mode[mode],
        weighting=chosen.staleness_weighting,
        compensation=DelayCompensation(lambda0) if lambda0 else None,
    )


def _workers(chosen):
    slow, slow_factor = chosen.slow_workers
    if slow > chosen.workers:
        raise ConfigurationError(
            f"--slow-workers is expected to be at most --workers {chosen.workers}. Received: {slow}. Lower it."
        )
    fraction, factor = chosen.stragglers
    usual = stumbling(varied(constant(chosen.compute_seconds), chosen.spread), fraction, factor)
    return [slowed(usual, slow_factor)] * slow + [usual] * (chosen.workers - slow)


def _train(chosen, rule):
    network = Network(chosen.latency_seconds, chosen.bytes_per_second)
    return train(
        TeacherTask(chosen.seed),
        rule,
        _workers(chosen),
        num_gradients=chosen.gradients,
        network=network,
        seed=chosen.seed,
    )


def _row(mode, result, first):
    waiting = sum(result.waited_seconds) / (result.seconds * len(result.waited_seconds)) if result.seconds else 0
    return (
        mode,
        f"{result.gradients_per_second:.4g}",
        f"{result.gradients_per_second / first.gradients_per_second:.2f}" if result.seconds else "",
        str(result.num_updates),
        f"{result.mean_staleness:.1f}",
        str(result.num_dropped),
        f"{waiting:.0%}",
        f"{result.seconds:.4g}",
        f"{result.error:.3f}",
    )
