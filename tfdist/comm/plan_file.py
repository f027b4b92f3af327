"""The file that TFDIST_PLAN names: which all-reduce for which size, and the rates and topology it was chosen for."""

import contextlib
import json
import os
import tempfile

from tfdist.collectives import Topology
from tfdist.comm.plans import Choice
from tfdist.errors import ConfigurationError


def load(path, topology):
    """Reads a choice.

    Args:
      path: str.
      topology: the `Topology` that it must have been made for.

    Returns:
      A `Choice`, or None where there is no such file.

    Raises:
      ConfigurationError: it cannot be read, holds something else, or was made for another topology.
    """
    try:
        with open(path, encoding="utf-8") as file:
            saved = json.load(file)
        made_for, choice = Topology(**saved["topology"]), Choice.from_dict(saved["choice"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:  # a ConfigurationError is a ValueError
        raise ConfigurationError(
            "TFDIST_PLAN is expected to name a file that tfdist has saved, or none yet. "
            f"Received: TFDIST_PLAN={path!r}: {type(error).__name__}: {error}. Remove it to measure anew, or name another."
        ) from error
    if made_for != topology:
        raise ConfigurationError(
            f"TFDIST_PLAN is expected to have been saved by a job on the same hosts, {_text(topology)}. "
            f"Received: TFDIST_PLAN={path!r}, saved for {_text(made_for)}. Remove it to measure anew, or name another."
        )
    return choice


def save(path, topology, choice):
    """Writes a choice; whoever reads meanwhile sees all of it or nothing.

    Raises:
      ConfigurationError: it cannot be written.
    """
    text = json.dumps({"topology": {"hosts": topology.hosts, "shared": topology.shared}, "choice": choice.to_dict()})
    folder = os.path.dirname(os.path.abspath(path))
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=folder, prefix=".tfdist-plan-", delete=False
        ) as file:
            temporary = file.name
            file.write(text + "\n")
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise ConfigurationError(
            f"TFDIST_PLAN is expected to name a file that can be written. Received: TFDIST_PLAN={path!r}: {error}. "
            "Name another, or unset it."
        ) from error


def _text(topology):
    return f"hosts={topology.hosts}, shared={topology.shared}"
