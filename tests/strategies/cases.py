"""Training runs that workers execute and one process repeats as the reference.

Every case is a function without arguments that trains something under the given strategy and returns a dict of
arrays and JSON values; `run_cases` packs many of them into one spawn. The cases are in the files beside this one, by
theme. Names starting with `local_` may differ between ranks; everything else must be bit-equal.
"""

# Imported for what they enter into CASES.
from tests.strategies import cases_of_data, cases_of_fit, cases_of_loops, cases_of_models  # noqa: F401
from tests.strategies.case_tools import CASES, begin, data, fit, mlp, outcome, state

__all__ = ["CASES", "begin", "data", "fit", "mlp", "outcome", "run_cases", "state"]


def run_cases(names):
    """Runs the named cases under TFDIST_STRATEGY; returns their results with the case's name before each key."""
    import tfdist

    results = {}
    for name in names:
        begin()
        strategy = tfdist.strategy()
        with strategy.scope():
            result = outcome(CASES[name])
        if strategy.uses_servers:
            strategy.close()
        results.update({f"{name}: {key}": value for key, value in result.items()})
    return results
