"""Runs Keras's tests on some workers, and again without a strategy those that did not pass."""

import json
import os
import tempfile
from pathlib import Path

from tests import multiprocess

_MAX_STARTS = 8
_SESSION_SECONDS = 900.0


def run(modules, num_workers, strategy="ring", only=None):
    """Runs the tests of `modules`.

    Args:
      modules: list of str such as "trainers.trainer_test", below keras.src.
      num_workers: int.
      strategy: str, "none" for plain Keras.
      only: list of the tests to run; default: all.

    Returns:
      Dict of test to list of `(outcome, text)`, one per rank; outcome is "passed", "failed", "skipped" or "ended" (its process did).
    """
    with tempfile.TemporaryDirectory() as folder:
        outcomes = {}
        for start in range(_MAX_STARTS):
            here = Path(folder) / str(start)
            here.mkdir()
            left = here / "only"
            if only is not None:
                left.write_text(json.dumps(only))
            results = multiprocess.run_workers(
                num_workers,
                "tests.conformance.keras_suite:session",
                timeout=_SESSION_SECONDS,
                check=False,
                modules=modules,
                strategy=strategy,
                folder=str(here),
                environment={"TFDIST_TIMEOUT": "60"},
            )
            collected = json.loads((here / "collected").read_text())
            seen = _read(here, num_workers)
            outcomes.update(seen)
            only = [test for test in collected if test not in outcomes]
            if not only:
                return outcomes
            if not seen:
                raise RuntimeError("No test ran.\n" + "\n".join(output[-4000:] for _, output, _ in results))
        raise RuntimeError(
            f"{_MAX_STARTS} sessions were not enough; {len(only)} tests are left, the first is {only[0]}."
        )


def differences(modules, outcomes):
    """Returns the dict of test to what it did on which rank, for those that plain Keras ends otherwise."""
    suspects = {test: ranks for test, ranks in outcomes.items() if any(outcome != "passed" for outcome, _ in ranks)}
    if not suspects:
        return {}
    plain = run(modules, 1, "none", only=list(suspects))
    found = {}
    for test, ranks in suspects.items():
        ((expected, _),) = plain[test]
        others = [f"{outcome} on rank {i}\n{text}" for i, (outcome, text) in enumerate(ranks) if outcome != expected]
        if others:
            found[test] = f"{expected} without a strategy; " + "\n".join(others)
    return found


def session(modules, strategy, folder):
    """Runs on each worker."""
    import pytest

    rank = os.environ.get("TFDIST_RANK", "0")
    arguments = [
        "-p",
        "tests.conformance.keras_plugin",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:warnings",
        "-c",
        os.devnull,
    ]
    arguments += ["-q", "--tb=short", "--continue-on-collection-errors"]
    arguments += ["--strategy", strategy, "--outcomes", f"{folder}/outcomes-{rank}", "--folder", f"{folder}/shared"]
    arguments += ["--collected", f"{folder}/collected"] if rank == "0" else []
    if os.path.exists(f"{folder}/only"):
        arguments += ["--only", f"{folder}/only"]
    code = pytest.main([*arguments, "--pyargs", *(f"keras.src.{module}" for module in modules)])
    return {"code": int(code)}


def _read(folder, num_workers):
    """Returns the outcomes of the tests that all ranks have begun."""
    ranks = []
    for rank in range(num_workers):
        path = folder / f"outcomes-{rank}"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        ranks.append({line["test"]: (line["outcome"], line["text"]) for line in lines})
    tests = [test for test in ranks[0] if all(test in rank for rank in ranks)]
    return {test: [_ended(rank[test]) for rank in ranks] for test in tests}


def _ended(outcome):
    return ("ended", "its process ended: a time-out or a crash") if outcome[0] == "running" else outcome
