"""`tfdist bench stragglers`: what of the workers' own speeds is left where one is slow, or each now and then."""

import contextlib
import dataclasses
import json
import statistics

from tfdist.bench import machine, options, peers, table, variants
from tfdist.bench.progress import noted, tell
from tfdist.launch.parser import Parser, count, seconds

_PROGRAM = peers.PROGRAMS / "fit_stragglers.py"
_MODEL = "small"
_WARM_UP_BATCHES = 8  # of each worker; builds the graphs
_OWN = "own"
_EPILOG = """\
examples:
  tfdist bench stragglers
  tfdist bench stragglers --workers 4 --variants ring,async --scenarios permanent --json
A step sleeps for --step-ms, and trains 784-128-10 besides; a slow one sleeps longer. own: all workers at the same time,
unrelated. README.md beside this command's source says more.
"""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Who is slow when.

    Args:
      factor: float, how much longer a slow step takes.
      share: float, of steps that are slow on every worker; None makes all steps of the last worker slow.
    """

    factor: float
    share: float | None = None

    def slowness(self, num_workers, step_seconds):
        """Returns the arguments of `Slowness.set` by rank."""
        everybody = {"seconds": step_seconds, "factor": self.factor, "share": self.share}
        if self.share is not None:
            return [everybody] * num_workers
        return [{**everybody, "factor": self.factor if rank == num_workers - 1 else 1.0} for rank in range(num_workers)]

    def speeds(self, num_workers):
        """Returns the workers' own speeds by rank, in steps per step without slowness."""
        if self.share is not None:
            return [1 / (1 + self.share * (self.factor - 1))] * num_workers
        return [1.0] * (num_workers - 1) + [1 / self.factor]


SCENARIOS = {"permanent": Scenario(5.0), "transient": Scenario(10.0, 0.05)}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to train together.

    Args:
      strategy: str for `tfdist.strategy`, or None for unrelated workers.
      options: dict, its arguments.
      waits: bool, whether a worker that is always slow is waited for.
      is_global: bool, whether `fit` is told the batch of all workers together.
    """

    strategy: str | None
    options: dict = dataclasses.field(default_factory=dict)
    waits: bool = True
    is_global: bool = True

    def crew(self, setting, name):
        """Returns a context manager of its `Crew`; a strategy with a server has one."""
        task = {"strategy": self.strategy, "options": self.options, "model": _MODEL, "name": name}
        num_servers = 0 if self.strategy in (None, "ring") else 1
        return peers.tfdist_crew(
            setting, _PROGRAM, {**variants.QUIET, **variants.KERAS_3}, num_servers=num_servers, **task
        )


VARIANTS = {
    _OWN: Variant(None, waits=False, is_global=False),
    "ring": Variant("ring"),
    "async": Variant("async", waits=False, is_global=False),
    "bounded": Variant("bounded", {"staleness_bound": 4}, is_global=False),
    "sync": Variant("sync"),
    "backup": Variant("sync", {"backup_workers": 1}, waits=False),
}


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one epoch of one variant has shown.

    Args:
      speed: float, examples per second of all workers, without those whose gradients were dropped.
      batches: list of int by rank.
      waited: list of float by rank, seconds that the server let it wait, as a share of the epoch; empty without a server.
      staleness: list of float by rank, the mean; empty without a server.
      dropped: float, the share of gradients that came too late.
    """

    speed: float
    batches: list
    waited: list
    staleness: list
    dropped: float


def main(arguments):
    """Runs the subcommand; returns the exit code: 1 where somebody failed."""
    return run(_parser().parse_args(arguments))


def run(chosen):
    """Measures the variants in turns; returns the exit code."""
    names = list(dict.fromkeys([_OWN, *chosen.variants]))
    failures = []
    with contextlib.ExitStack() as stack:
        crews = {}
        for number, name in enumerate(names, 1):
            tell(f"{name} starts, {number} of {len(names)}")
            with noted(failures):
                crews[name] = stack.enter_context(VARIANTS[name].crew(peers.Setting(world_size=chosen.workers), name))
        turns = _measure(crews, chosen, failures)
    if not chosen.json:
        table.write(_title(chosen))
    for line in _lines(turns, chosen):
        table.write(line)
    return 1 if failures or not turns else 0


def _measure(crews, chosen, failures):
    """Returns a dict of (scenario, variant) to its `Turn`s, one a round; a variant that fails is left out."""
    turns = {}
    for name in list(crews):
        with noted(failures, crews, name):
            _train(crews[name], name, Scenario(1.0), [_WARM_UP_BATCHES] * chosen.workers, chosen)
    for index in range(chosen.rounds):
        for scenario in chosen.scenarios:
            order = list(crews)
            shift = index % max(1, len(order))
            for name in [*order[shift:], *order[:shift]]:
                with noted(failures, crews, name):
                    batches = plan(VARIANTS[name], SCENARIOS[scenario], chosen)
                    turn = _train(crews[name], name, SCENARIOS[scenario], batches, chosen)
                    turns.setdefault((scenario, name), []).append(turn)
                    tell(f"round {index + 1} of {chosen.rounds}, {scenario}, {name}: {turn.speed:.0f} examples/s")
    return {key: found for key, found in turns.items() if key[1] in crews}


def plan(variant, scenario, chosen):
    """Returns the batches of each worker's part in an epoch of about `chosen.epoch_seconds`."""
    speeds = scenario.speeds(chosen.workers)
    if variant.waits:
        speeds = [min(speeds)] * chosen.workers
    steps = chosen.epoch_seconds / (chosen.step_ms / 1e3)
    return [max(1, round(steps * speed)) for speed in speeds]


def _train(crew, name, scenario, batches, chosen):
    variant = VARIANTS[name]
    batch_size = chosen.batch * (chosen.workers if variant.is_global else 1)
    slowness = scenario.slowness(chosen.workers, chosen.step_ms / 1e3)
    replies = crew.ask("train", batch_size=batch_size, batch=chosen.batch, batches=batches, slowness=slowness)
    return summarize(replies, batches, chosen.batch, is_one_model=variant.strategy is not None)


def summarize(replies, batches, batch, is_one_model):
    """Returns the `Turn` of the workers' replies; workers of one model end together, unrelated ones each at its time."""
    seconds = [reply["seconds"] for reply in replies]
    if is_one_model:
        speed = batch * sum(batches) / max(seconds)
    else:
        speed = sum(batch * number / time for number, time in zip(batches, seconds))
    records = [reply["record"] for reply in replies if reply["record"]]
    pushes = sum(record["pushes"] for record in records)
    dropped = sum(record["dropped"] for record in records) / pushes if pushes else 0.0
    waited = [record["waited_seconds"] / max(seconds) for record in records]
    made = [reply["batches"] for reply in replies]
    return Turn(speed * (1 - dropped), made, waited, [_mean(record["staleness"]) for record in records], dropped)


def _mean(histogram):
    total = sum(histogram.values())
    return sum(int(value) * number for value, number in histogram.items()) / total if total else 0.0


def results(turns):
    """Returns a dict a line; "of_own" is the median over rounds of the ratio to the unrelated workers' speeds."""
    rows = []
    for (scenario, name), found in turns.items():
        own = turns.get((scenario, _OWN), [])
        ratios = [turn.speed / base.speed for turn, base in zip(found, own)]
        middle = sorted(found, key=lambda turn: turn.speed)[len(found) // 2]
        rows.append(
            {
                "scenario": scenario,
                "variant": name,
                "workers": len(middle.batches),
                "examples_per_second": round(statistics.median(turn.speed for turn in found), 1),
                "of_own": round(statistics.median(ratios), 4) if ratios else None,
                "batches": middle.batches,
                "waited": [round(value, 4) for value in middle.waited],
                "staleness": [round(value, 2) for value in middle.staleness],
                "dropped": round(middle.dropped, 4),
            }
        )
    return rows


def _lines(turns, chosen):
    rows = results(turns)
    if chosen.json:
        return [json.dumps(row) for row in rows]
    cells = [
        (row["scenario"], row["variant"], f"{row['examples_per_second']:.0f}",
         "" if row["of_own"] is None else f"{100 * row['of_own']:.0f} %", _listed(row["batches"], "d"),
         _listed(row["staleness"], ".1f"), _listed(row["waited"], ".0%"), f"{row['dropped']:.1%}")
        for row in rows
    ]  # fmt: skip
    header = ("scenario", "variant", "examples/s", "of own", "batches by worker", "mean staleness", "waited", "dropped")
    return table.align(header, cells)


def _listed(values, form):
    return " ".join(format(value, form) for value in values)


def _title(chosen):
    return (
        f"model.fit of {chosen.workers} workers whose steps sleep {chosen.step_ms:g} ms, batch {chosen.batch}; permanent: the "
        f"last takes {SCENARIOS['permanent'].factor:g}x; transient: {SCENARIOS['transient'].share:.0%} of steps take "
        f"{SCENARIOS['transient'].factor:g}x: {machine.describe()}"
    )


def _parser():
    parser = Parser(
        prog="tfdist bench stragglers",
        usage="tfdist bench stragglers [--workers N] [--variants A,B,...] [--scenarios A,B] [options]",
        description="Examples per second of model.fit beside the sum of the workers' own speeds, all variants in turns.",
        epilog=_EPILOG,
    )
    add, others = parser.add_argument, [name for name in VARIANTS if name != _OWN]
    add(
        "--workers",
        type=count(2),
        default=4,
        metavar="N",
        help="workers; they sleep, so they may be more than cores (4)",
    )
    add("--variants", type=options.choices(others), default=",".join(others), metavar="A,B,...",
        help=f"{', '.join(others)} (all): bounded has bound 4, backup is sync with 1 backup worker")  # fmt: skip
    add("--scenarios", type=options.choices(SCENARIOS), default=",".join(SCENARIOS), metavar="A,B",
        help="permanent: the last worker is 5x as slow; transient: 5%% of all steps are 10x as slow (both)")  # fmt: skip
    add("--batch", type=count(1), default=32, metavar="B", help="samples of one worker's step (32)")
    add("--step-ms", type=seconds, default=20.0, metavar="MS", help="what a step sleeps (20)")
    add("--epoch-seconds", type=seconds, default=5.0, metavar="S", help="about what a timed epoch takes (5)")
    add("--rounds", type=count(1), default=3, metavar="R", help="turns of each variant (3)")
    add("--json", action="store_true", help="for programs: one line a scenario and variant")
    return parser
