"""How fast the machines are: what turns a `Cost` into seconds."""

import dataclasses
import math

from tfdist.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class LevelRates:
    """The speed inside a host, or between hosts.

    Args:
      latency_seconds: from sending a short message to having it, when the receiver waits for it (alpha).
      seconds_per_message: what a rank's thread spends on a message beside its bytes; many may be on their way at once.
      seconds_per_byte: inside a host: of a rank's thread to write a byte, and again to read one; between hosts: of
        the link, either way (beta).
    """

    latency_seconds: float
    seconds_per_message: float
    seconds_per_byte: float


@dataclasses.dataclass(frozen=True)
class Rates:
    """All speeds that predictions are made from; all > 0.

    Args:
      inside: `LevelRates` between the ranks of one host.
      between: `LevelRates` between hosts.
      reduce_seconds_per_byte: to add a received byte to an own one (gamma).
      start_seconds: to start and end a collective, whichever it is.
    """

    inside: LevelRates
    between: LevelRates
    reduce_seconds_per_byte: float
    start_seconds: float

    def to_dict(self):
        """Returns nested dicts of floats that JSON can hold; `from_dict` restores equal rates."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        """Returns the rates that `to_dict` made `values` of.

        Raises:
          ConfigurationError: a rate is missing, unknown or not a finite number > 0.
        """
        try:
            levels = {level: LevelRates(**values[level]) for level in ("inside", "between")}
            rates = cls(**{**values, **levels})
            valid = all(math.isfinite(rate) and rate > 0 for rate in to_list(rates))
        except (TypeError, KeyError):
            valid = False
        if not valid:
            raise ConfigurationError(
                f"rates is expected to hold what Rates.to_dict returns, all numbers > 0. Received: rates={values}. "
                "Save the plan again, or measure anew by leaving it out."
            )
        return rates


# An ordinary shared-memory window; TCP over loopback; a 10 Gbit/s network.
_SHARED_MEMORY = LevelRates(1e-6, 0.2e-6, 1 / 20e9)
_LOOPBACK = LevelRates(20e-6, 3e-6, 1 / 5e9)
_NETWORK = LevelRates(30e-6, 3e-6, 1 / 1.2e9)


def default_rates(topology):
    """Returns the `Rates` to go by where nothing was measured: those of an ordinary machine and network."""
    inside = _SHARED_MEMORY if topology.shared else _LOOPBACK
    return Rates(inside, _NETWORK, reduce_seconds_per_byte=1 / 25e9, start_seconds=10e-6)


def seconds(cost, rates):
    """Returns how long a collective of this `Cost` takes: linear in the rates and in the cost's counts.

    One thread per rank writes, reads and adds, so inside a host these add up; chunks stream, so nothing is paid twice for
    being in several rounds. A link between hosts carries both ways at once: the busier way counts.
    """
    fixed, moving = fixed_seconds(cost, rates), 0.0
    moving += (cost.inside.bytes_sent + cost.inside.bytes_received) * rates.inside.seconds_per_byte
    moving += max(cost.between.bytes_sent, cost.between.bytes_received) * rates.between.seconds_per_byte
    moving += (cost.inside.bytes_reduced + cost.between.bytes_reduced) * rates.reduce_seconds_per_byte
    return fixed + moving


def fixed_seconds(cost, rates):
    """Returns the part of `seconds` that does not depend on the array's bytes."""
    fixed = rates.start_seconds
    for traffic, level in ((cost.inside, rates.inside), (cost.between, rates.between)):
        fixed += traffic.latencies * level.latency_seconds + traffic.messages * level.seconds_per_message
    return fixed


def to_list(rates):
    """Returns the eight rates: three inside, three between hosts, the reduction, the start."""
    return [
        *dataclasses.astuple(rates.inside),
        *dataclasses.astuple(rates.between),
        rates.reduce_seconds_per_byte,
        rates.start_seconds,
    ]


def from_list(values):
    """Returns the `Rates` of eight numbers in `to_list`'s order."""
    return Rates(LevelRates(*values[:3]), LevelRates(*values[3:6]), *values[6:])
