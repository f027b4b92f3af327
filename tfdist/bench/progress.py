"""What a long benchmark says on stderr while it goes on; stdout is for the result."""

import contextlib
import sys

from tfdist.bench.crew import CrewFailedError


def tell(line):
    """Says a line."""
    sys.stderr.write(f"tfdist bench: {line}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def noted(failures, crews=None, key=None):
    """Turns the failure of a crew into a line, an entry of the list `failures`, and drops it from `crews`."""
    try:
        yield
    except CrewFailedError as error:
        failures.append(error)
        if crews is not None:
            crews.pop(key, None)
        tell(" ".join(str(error).split()))
