"""Options that the benchmarks share, checked before anything starts."""

import argparse
import shutil
import sys

from tfdist.errors import ConfigurationError

_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_MAX_BYTES = 1 << 34


def sizes(text):
    """An argparse type: bytes of float32 buffers, separated by commas; 4K, 16M and 1G are powers of two."""
    return [_size(part.strip()) for part in text.split(",")]


def _size(text):
    digits, factor = text, 1
    if text[-1:].lower() in _UNITS:
        digits, factor = text[:-1], _UNITS[text[-1].lower()]
    value = int(digits) * factor if digits.isascii() and digits.isdecimal() else 0
    if not 4 <= value <= _MAX_BYTES or value % 4:
        raise argparse.ArgumentTypeError(
            f"sizes in bytes, multiples of 4 from 4 to {_MAX_BYTES}, are expected, such as 4K,1M,100000000. Received: {text!r}"
        )
    return value


def choices(known):
    """Returns an argparse type: some of the names `known`, separated by commas, each once."""

    def parse(text):
        names = [part.strip() for part in text.split(",")]
        if not set(names) <= set(known) or len(set(names)) < len(names):
            raise argparse.ArgumentTypeError(
                f"names from {', '.join(known)}, each once and separated by commas, are expected. Received: {text!r}"
            )
        return names

    return parse


def wire_dtype(text):
    """An argparse type: None for float32, which is how the benchmarks' buffers travel anyway."""
    return None if text == "float32" else text


def add_peer_options(parser):
    """Adds --peers and --peer-python."""
    parser.add_argument("--peers", action="store_true", help="beside other libraries, as far as they are installed")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PATH",
                        help="the interpreter that has them (this one)")  # fmt: skip


def find_interpreter(path):
    """Returns the full path of --peer-python."""
    found = shutil.which(path)
    if found is None:
        raise ConfigurationError(
            f"--peer-python is expected to be a program. Received: {path!r}, which does not exist. Correct the path."
        )
    return found
