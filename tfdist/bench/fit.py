"""`tfdist bench fit`: samples per second of `model.fit`, and how much of a step is communication that nothing hides."""

import contextlib
import dataclasses
import json
import statistics
import time

from tfdist.bench import budget, machine, options, peers, table, variants
from tfdist.bench.progress import noted, tell
from tfdist.launch.parser import Parser, count, seconds

_STEPS = {"small": 150, "big": 30}  # of an epoch, at most; an epoch's own overhead is spread over them
_MAX_ROWS = {"small": 60_000, "big": 20_000}
_PROBE_STEPS = {"small": 50, "big": 5}
_BUDGET_SECONDS = 150.0
_EPILOG = """\
examples:
  tfdist bench fit --workers 2 --model small --batch 32
  tfdist bench fit --workers 2 --model big --batch 256 --peers --json
  tfdist bench fit --workers 2 --model big --strategy async,sync --peers
compute is the step of as many unrelated processes, a core each, at the same time; exposed is the rest of the step.
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the result.

    Args:
      variant: its name.
      workers: int, processes of it.
      model: "small" or "big".
      batch: int, samples of one update of one model.
      samples_per_second: float, of all processes.
      step_seconds: float, the slowest process's, the median over epochs.
      compute_seconds: float, the part of the step that is there without communication too.
    """

    variant: str
    workers: int
    model: str
    batch: int
    samples_per_second: float
    step_seconds: float
    compute_seconds: float

    @property
    def exposed_seconds(self):
        """What communication adds to a step; noise can make it a little less than 0."""
        return self.step_seconds - self.compute_seconds


def main(arguments):
    """Runs the subcommand; returns the exit code: 1 where somebody failed."""
    chosen = _parser().parse_args(arguments)
    setting = peers.Setting(world_size=chosen.workers, peer_python=options.find_interpreter(chosen.peer_python))
    rows = variants.table(chosen.workers, chosen.strategy)
    if chosen.peers:
        lacking = variants.missing(setting.peer_python, peers.look(setting.peer_python)["versions"])
        if lacking:
            tell(lacking)
        else:
            rows += variants.of_tensorflow(chosen.workers, chosen.strategy)
    return run(chosen, setting, rows)


def run(chosen, setting, rows):
    """Measures the given variants; returns the exit code."""
    failures = []
    deadline = time.monotonic() + chosen.budget
    with contextlib.ExitStack() as stack:
        crews = {}
        for number, variant in enumerate(rows, 1):
            tell(f"{variant.name} starts, {number} of {len(rows)}")
            with noted(failures):
                crews[variant] = stack.enter_context(variant.crew(setting, chosen.model))
        found = _results(_measure(crews, chosen, failures, deadline), chosen)
        if not chosen.json:
            title = f"model.fit, {chosen.model}, {chosen.workers} workers, batch {chosen.batch} per worker"
            table.write(f"{title}: {machine.describe()}")
        for line in _lines(found, chosen.json):
            table.write(line)
    return 1 if failures or not found else 0


def _measure(crews, chosen, failures, deadline):
    """Returns a dict of variant to the list of seconds per step; a variant that fails is left out."""
    steps = {variant: _most_steps(variant, chosen) for variant in crews}
    times, probed = {}, {}
    for variant in list(crews):  # the first call builds the graphs
        with noted(failures, crews, variant):
            probe = _train(crews[variant], variant, chosen.batch, min(_PROBE_STEPS[chosen.model], steps[variant]), 1)
            times[variant], probed[variant] = [], statistics.median(probe)
            tell(f"{variant.name} is ready: {probed[variant] * 1e3:.1f} ms a step")
    plan = budget.divide(
        deadline - time.monotonic(), probed, rounds=chosen.rounds, steps=steps, epochs=chosen.epochs + 1,
        fixed_steps=chosen.steps is not None,
    )  # fmt: skip
    last_begin = time.monotonic()
    for index in range(plan.rounds):
        begin = time.monotonic()
        if index and begin + (begin - last_begin) / 2 > deadline:  # half of a round too late at most
            tell(f"ends after round {index} of {plan.rounds}: --budget {chosen.budget:g} is spent")
            break
        last_begin = begin
        order = list(times)
        shift = index % max(1, len(order))
        for variant in [*order[shift:], *order[:shift]]:
            if variant in crews:
                with noted(failures, crews, variant):
                    times[variant] += _train(crews[variant], variant, chosen.batch, plan.steps[variant], chosen.epochs)
                    step = statistics.median(times[variant]) * 1e3
                    tell(f"round {index + 1} of {plan.rounds}, {variant.name}: {step:.1f} ms a step")
    return {variant: values for variant, values in times.items() if variant in crews}


def _most_steps(variant, chosen):
    rows = _MAX_ROWS[chosen.model] // (chosen.batch * variant.num_batches * variant.num_updates)
    return max(1, min(chosen.steps or _STEPS[chosen.model], rows))


def _train(crew, variant, batch_per_worker, steps, epochs):
    """Returns the seconds per step of each epoch, the slowest rank's; a step is one of every worker."""
    batch, updates = batch_per_worker * variant.num_batches, variant.num_updates
    replies = crew.ask("train", batch=batch, steps=steps * updates, epochs=epochs)
    return [updates * max(times) for times in zip(*(reply["seconds"] for reply in replies))]


def _results(times_by_variant, chosen):
    compute = next((statistics.median(times) for variant, times in times_by_variant.items()
                    if variant.name == variants.COMPUTE), None)  # fmt: skip
    rows = []
    for variant, times in times_by_variant.items():
        step, batch = statistics.median(times), chosen.batch * variant.num_batches
        workers = variant.num_models if variant.num_models > 1 else chosen.workers if variant.communicates else 1
        own = compute if variant.communicates and compute is not None else step
        samples = batch * variant.num_models * variant.num_updates
        rows.append(Row(variant.name, workers, chosen.model, batch, samples / step, step, own))
    return rows


def _lines(rows, as_json):
    if as_json:
        return [json.dumps(as_dict(row)) for row in rows]
    ceiling = max((row.samples_per_second for row in rows), default=1.0)
    cells = [
        (row.variant, str(row.workers), str(row.batch), f"{row.samples_per_second:.0f}", f"{row.step_seconds * 1e3:.3f}",
         f"{row.compute_seconds * 1e3:.3f}", f"{row.exposed_seconds * 1e3:.3f}", f"{row.samples_per_second / ceiling:.2f}")
        for row in rows
    ]  # fmt: skip
    return table.align(
        ("variant", "workers", "batch", "samples/s", "step ms", "compute ms", "exposed ms", "of best"), cells
    )


def as_dict(row):
    """Returns what is printed as a line of JSON."""
    return {
        "variant": row.variant,
        "workers": row.workers,
        "model": row.model,
        "batch": row.batch,
        "samples_per_second": round(row.samples_per_second, 1),
        "step_ms": row.step_seconds * 1e3,
        "compute_ms": row.compute_seconds * 1e3,
        "exposed_ms": row.exposed_seconds * 1e3,
    }


def _parser():
    parser = Parser(
        prog="tfdist bench fit",
        usage="tfdist bench fit [--workers N] [--model small|big] [--batch B] [options]",
        description="Times model.fit of a multilayer perceptron on random data of MNIST's shape, all variants in turns.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("--workers", type=count(1), default=2, metavar="N", help="workers of tfdist, a core each (2)")
    add("--model", choices=("small", "big"), default="small", help="784-128-10, or 784-2048x3-10 (small)")
    add(
        "--batch", "--batch-per-worker", type=count(1), default=32, metavar="B", help="samples per worker and step (32)"
    )
    add("--strategy", type=options.choices(variants.STRATEGIES), default="ring", metavar="A,B,...",
        help=f"of tfdist: {', '.join(variants.STRATEGIES)}; one parameter server beside the workers (ring)")  # fmt: skip
    options.add_peer_options(parser)
    add("--budget", type=seconds, default=_BUDGET_SECONDS, metavar="S",
        help=f"seconds for all: fewer rounds where steps are slow, then fewer steps ({_BUDGET_SECONDS:g})")  # fmt: skip
    add("--rounds", type=count(1), default=7, metavar="R", help="turns of each variant, at most (7)")
    add("--epochs", type=count(1), default=2, metavar="E", help="timed epochs of a turn (2)")
    add("--steps", type=count(1), metavar="S", help="steps of an epoch (at most 150 small, 30 big, as the data allows)")
    add("--json", action="store_true", help="for programs: one line a variant")
    return parser
