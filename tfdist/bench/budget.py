"""Divides the seconds that a benchmark may take between its variants: fewer rounds where steps are slow, then fewer steps."""

import dataclasses

_FEW_ROUNDS = 3  # a median of fewer tells little; steps go first
_FEW_STEPS = 10  # an epoch's own overhead is spread over them


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be run.

    Args:
      rounds: int, turns of each variant.
      steps: dict of variant to int, the steps of its epochs.
    """

    rounds: int
    steps: dict


def divide(seconds, step_seconds, *, rounds, steps, epochs, fixed_steps=False):
    """Makes the plan. Where even the least is too much, that is what is planned.

    Args:
      seconds: float, what is left.
      step_seconds: dict of variant to float, how long its step takes.
      rounds: int, of each variant at most.
      steps: dict of variant to int, of an epoch at most.
      epochs: int, of a turn.
      fixed_steps: bool, whether epochs keep their steps.

    Returns:
      A `Plan`.
    """
    few_rounds = min(rounds, _FEW_ROUNDS)
    round_seconds = epochs * sum(steps[variant] * step_seconds[variant] for variant in step_seconds)
    fitting = int(seconds / max(round_seconds, 1e-9))
    if fixed_steps or fitting >= few_rounds:
        return Plan(max(1, min(rounds, fitting)), steps)
    share = seconds / (few_rounds * epochs * max(1, len(step_seconds)))  # of a variant's epoch
    fewer = {
        variant: min(steps[variant], max(_FEW_STEPS, int(share / step_seconds[variant]))) for variant in step_seconds
    }
    return Plan(few_rounds, fewer)
