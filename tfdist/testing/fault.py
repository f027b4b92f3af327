"""One fault: what happens to which worker, and when. Written as JSON into the variable TFDIST_FAULTS."""

import dataclasses
import json
import math

from tfdist.cluster import variables
from tfdist.errors import ConfigurationError

# In the order in which a worker reaches them; "step" is just before a training step. Of its collective: handed
# over ("reducing"), here but perhaps not everywhere ("reduced"), known to be everywhere ("committed").
PHASES = (
    "variables",
    "begin",
    "step",
    "reducing",
    "reduced",
    "committed",
    "step_end",
    "epoch_end",
    "validation",
    "saving",
    "end",
)
# kind -> the fields that it needs, and those it may have.
KINDS = {
    "kill": (("rank",), ("step", "phase", "incarnation")),
    "stop": (("rank", "seconds"), ("step", "phase", "incarnation")),
    "drop": (("rank", "peer"), ("step", "phase", "incarnation")),
}


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens to one worker, once.

    Args:
      kind: "kill", "stop" or "drop".
      rank: int, the worker.
      step: int, it happens at the first step that is not before it; where a phase has no step, it counts how often the
        process has been there before; None: at once.
      phase: str, one of `PHASES`.
      incarnation: int, in which of the processes that have this rank one after the other.
      seconds: float, how long a worker is stopped.
      peer: int, the rank to which its connections are dropped.

    Raises:
      ConfigurationError: that is no fault; the text says why.
    """

    kind: str
    rank: int
    step: int | None = None
    phase: str = "step"
    incarnation: int = 0
    seconds: float | None = None
    peer: int | None = None

    def __post_init__(self):
        _check(self.kind in KINDS, "a fault", " or ".join(KINDS), "kind", self.kind)
        needed, allowed = KINDS[self.kind]
        for name in ("rank", "step", "incarnation", "peer"):
            value = getattr(self, name)
            is_right = _is_count(value) or value is None and name not in (*needed, "incarnation")
            _check(is_right, f"{name} of {self.kind}", "an integer >= 0", name, value)
        _check(self.phase in PHASES, f"phase of {self.kind}", f"one of {', '.join(PHASES)}", "phase", self.phase)
        if "seconds" in needed:
            is_right = isinstance(self.seconds, (int, float)) and 0 < self.seconds < math.inf
            _check(is_right, f"seconds of {self.kind}", "a number > 0", "seconds", self.seconds)
        _check(self.peer != self.rank, "peer of drop", "another rank", "peer", self.peer)

    def __str__(self):
        fields = dataclasses.asdict(self)
        default = {field.name: field.default for field in dataclasses.fields(self)}
        told = [f"{name}={value}" for name, value in fields.items() if name != "kind" and value != default[name]]
        return f"{self.kind}:{','.join(told)}"


def to_json(faults):
    """Returns the value of TFDIST_FAULTS."""
    return json.dumps([dataclasses.asdict(fault) for fault in faults])


def from_environment(environ):
    """Returns the list of faults in TFDIST_FAULTS; empty where it is not set.

    Raises:
      ConfigurationError: its value is none that `FaultInjector.environment` gives.
    """
    text = variables.faults(environ)
    try:
        found = json.loads(text) if text else []
        if not isinstance(found, list):
            raise TypeError("no list")
        return [Fault(**fields) for fields in found]
    except (ValueError, TypeError) as error:  # a ConfigurationError is a ValueError
        raise ConfigurationError(
            f"TFDIST_FAULTS is expected to be what FaultInjector.environment() gives. Received: {text[:200]!r} ({error}). "
            "Unset it, or make it so."
        ) from error


def parse(text):
    """Reads faults as `tfdist run --inject` has them: "kill:rank=1,step=3;stop:rank=2,step=5,seconds=3".

    Returns:
      A list of `Fault`.

    Raises:
      ConfigurationError: it cannot be read.
    """
    return [_parse_one(part.strip()) for part in text.split(";") if part.strip()]


def _parse_one(text):
    kind, _, rest = text.partition(":")
    _check(kind in KINDS, "a fault", " or ".join(KINDS), "kind", kind)
    needed, allowed = KINDS[kind]
    fields = {}
    for word in rest.split(","):
        name, _, value = word.strip().partition("=")
        _check(name in (*needed, *allowed), f"{kind}", f"with {', '.join((*needed, *allowed))}", "field", name)
        fields[name] = value if name == "phase" else _number(value, name)
    missing = [name for name in needed if name not in fields]
    _check(not missing, kind, f"with {' and '.join(needed)}", "fault", text)
    return Fault(kind, **fields)


def _number(text, name):
    try:
        return float(text) if name == "seconds" else int(text)
    except ValueError:
        return text  # refused by the fault itself, with its name


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check(is_right, what, expected, name, value):
    if not is_right:
        raise ConfigurationError(
            f"{what} is expected to be {expected}. Received: {name}={value!r}. See tfdist.testing.FaultInjector."
        )
