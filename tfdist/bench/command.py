"""`tfdist bench`: finds the benchmark."""

import difflib
import importlib
import sys

from tfdist.errors import ConfigurationError

BENCHMARKS = {  # name -> (module with main(arguments) -> exit code, what it measures)
    "all-reduce": ("tfdist.bench.all_reduce", "sums of buffers over ranks, beside Gloo, Open MPI and MPICH"),
    "fit": ("tfdist.bench.fit", "samples per second of model.fit, and what communication costs of a step"),
    "limits": ("tfdist.bench.limits", "what this machine allows: copies, additions, shared memory, TCP"),
    "push-pull": ("tfdist.bench.push_pull", "an exchange with a parameter server, beside copies of as many bytes"),
    "stragglers": ("tfdist.bench.stragglers", "examples per second where one worker is slow, or each now and then"),
}


def main(arguments):
    """Runs the subcommand; returns the exit code."""
    if arguments and arguments[0] in ("-h", "--help"):
        width = max(map(len, BENCHMARKS))
        lines = [f"  {name:{width}}  {what}" for name, (_, what) in BENCHMARKS.items()]
        text = "usage: tfdist bench BENCHMARK ...\n\n" + "\n".join(lines)
        sys.stdout.write(f"{text}\n\n`tfdist bench BENCHMARK --help` says more.\n")
        return 0
    name = arguments[0] if arguments else None
    if name not in BENCHMARKS:
        close = difflib.get_close_matches(name or "", BENCHMARKS, 1)
        hint = f"Did you mean {close[0]!r}?" if close else "See `tfdist bench --help`."
        received = "none" if name is None else repr(name)
        raise ConfigurationError(f"a benchmark is expected: {' or '.join(BENCHMARKS)}. Received: {received}. {hint}")
    return importlib.import_module(BENCHMARKS[name][0]).main(arguments[1:])
