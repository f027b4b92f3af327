"""A user's mistake ends a script with one line and exit code 2, not with a traceback through our code."""

import sys
import traceback

from tfdist.errors import ConfigurationError


def install():
    """Makes an uncaught `ConfigurationError` a single line on stderr; every other exception is shown as before."""
    previous = sys.excepthook

    def hook(kind, error, trace):
        if not isinstance(error, ConfigurationError):
            return previous(kind, error, trace)
        sys.stderr.write(f"{_place(trace)}{kind.__name__}: {error}\n")
        raise SystemExit(2)

    sys.excepthook = hook


def _place(trace):
    """Where the user's own code made the mistake: the innermost frame of the main script."""
    frames = traceback.extract_tb(trace)
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    own = [frame for frame in frames if frame.filename == script]
    return f"{own[-1].filename}:{own[-1].lineno}: " if own else ""
