"""The `tfdist` command: finds the subcommand and turns its errors into one line and an exit code."""

import difflib
import importlib
import sys

import tfdist
from tfdist.errors import ConfigurationError, TfdistError

COMMANDS = {  # name -> (module with main(arguments) -> exit code, what it does)
    "run": ("tfdist.launch.run", "start a script on several workers"),
    "doctor": ("tfdist.launch.doctor", "show what is installed, the cluster as seen from here, and what is wrong"),
    "bench": ("tfdist.bench.command", "measure all-reduce, model.fit and this machine's limits"),
    "simulate": ("tfdist.simulate.command", "train a small model in virtual time, several modes side by side"),
}
_USAGE_ERROR = 2


def main(arguments=None):
    """Runs the command line.

    Args:
      arguments: list of str; by default those of the process.

    Returns:
      The exit code: 0, 2 for a mistake in the call, or what the subcommand says.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        _write(sys.stdout, _help())
        return 0 if arguments else _USAGE_ERROR
    if arguments[0] in ("-V", "--version"):
        _write(sys.stdout, f"tfdist {tfdist.__version__}\n")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"Did you mean {close[0]!r}?" if close else "See `tfdist --help`."
        return complain("tfdist", f"a command is expected: {' or '.join(COMMANDS)}. Received: {name!r}. {hint}")
    try:
        return importlib.import_module(COMMANDS[name][0]).main(arguments[1:])
    except ConfigurationError as error:
        return complain(f"tfdist {name}", error)
    except TfdistError as error:
        complain(f"tfdist {name}", error)
        return 1
    except KeyboardInterrupt:
        return 130


def complain(who, what):
    """Writes one line on stderr, and returns the exit code of a mistake in the call."""
    _write(sys.stderr, f"{who}: {' '.join(str(what).split())}\n")
    return _USAGE_ERROR


def _help():
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "usage: tfdist COMMAND ...\n\n" + "\n".join(lines) + "\n\n`tfdist COMMAND --help` says more.\n"


def _write(stream, text):
    stream.write(text)
    stream.flush()
