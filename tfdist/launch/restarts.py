"""When the place of a lost worker or server is filled again, and when it is given up."""

import dataclasses

_FIRST_DELAY_SECONDS = 0.1
_LAST_DELAY_SECONDS = 10.0
_SHORT_LIFE_SECONDS = 60.0
_MAX_SHORT_LIVES = 3


@dataclasses.dataclass(frozen=True)
class RestartRules:
    """What is allowed in a job that recovers.

    Args:
      max_restarts: int, restarts of each place.
      min_workers: int, workers on all hosts, below which the job ends.
    """

    max_restarts: int = 3
    min_workers: int = 1


@dataclasses.dataclass
class Record:
    """What is remembered of one place.

    Args:
      restarts: int, how often it was filled again.
      failed_lives: int, lives since the last one that took part in the job.
      short_lives: int, those of them, without interruption until now, that were short too.
    """

    restarts: int = 0
    failed_lives: int = 0
    short_lives: int = 0


def decide(record, max_restarts, life_seconds, took_part):
    """Decides what becomes of a place whose process was lost, and keeps the record.

    A life that ends within 60 s and before the process took part in the job is short: the third in a row is the last.

    Args:
      record: the place's `Record`; changed.
      max_restarts: int.
      life_seconds: float, how long the process has run.
      took_part: bool, whether it had become a member of the job.

    Returns:
      `(delay, why)`: seconds until the restart, 0.1 at first and twice as much, up to 10, after each life that took no
      part, and None; or None, and why there is none.
    """
    record.failed_lives = 0 if took_part else record.failed_lives + 1
    record.short_lives = 0 if took_part or life_seconds >= _SHORT_LIFE_SECONDS else record.short_lives + 1
    if record.restarts >= max_restarts:
        return None, f"it was started again {record.restarts} times" if record.restarts else "--max-restarts is 0"
    if record.short_lives >= _MAX_SHORT_LIVES:
        return None, f"{record.short_lives} times in a row it ended within {_SHORT_LIFE_SECONDS:g} s of its start"
    record.restarts += 1
    return min(_LAST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2 ** max(0, record.failed_lives - 1)), None
