"""What a job's store tells of the lives of its workers, for launchers, members and joiners alike.

Each key is followed by a rank; the value is an incarnation, how often that worker was started before, in decimal.
"""

DEAD = "elastic/dead/"  # lost, as its launcher has seen
EXCLUDED = "elastic/excluded/"  # the others go on without it, as one of them says
JOINED = "elastic/joined/"  # a member now, as it says itself
OVER = "elastic/over"  # no rank: the job has ended well


def incarnations(items):
    """Returns a dict of rank -> incarnation.

    Args:
      items: dict of key -> bytes, all that the store has under one of the prefixes above.
    """
    told = {key.rpartition("/")[2]: value for key, value in items.items()}
    return {int(rank): int(value) for rank, value in told.items() if rank.isdecimal() and value.isdigit()}
