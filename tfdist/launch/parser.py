"""argparse, with its complaints in one line and option values checked before anything starts."""

import argparse
import math

from tfdist.errors import ConfigurationError


class Parser(argparse.ArgumentParser):
    """Raises ConfigurationError where argparse would print the usage and exit."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):
        raise ConfigurationError(f"{message}. See `{self.prog} --help`.")


def count(low):
    """Returns an argparse type: an integer of at least `low`."""

    def convert(text):
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"an integer >= {low} is expected. Received: {text!r}")
        return value

    return convert


def seconds(text):
    """An argparse type: a number of seconds > 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a number of seconds > 0 is expected. Received: {text!r}")
    return value


def split_command(parser, arguments):
    """Cuts a command line in two where the user's own command begins.

    Everything from the first word that is no option of ours, from `-m` or from after `--` is the user's, so that
    the script gets its arguments untouched, even those that look like ours.

    Returns:
      `(options, command)`, two lists.
    """
    with_value = {
        text for action in parser._actions if action.nargs != 0 for text in action.option_strings
    }  # argparse has no public list of a parser's options
    index = 0
    while index < len(arguments):
        word = arguments[index]
        if word == "--":
            return arguments[:index], arguments[index + 1 :]
        if word == "-m" or not word.startswith("-"):
            break
        index += 2 if word in with_value else 1
    return arguments[:index], arguments[index:]
