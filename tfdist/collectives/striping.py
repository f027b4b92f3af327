"""A plan over several sockets a peer: the same algorithm on disjoint lanes of the array.

One connection's window, its losses, and the core that serves it bound how fast it is. Where two ranks have several, each
chunk is cut into as many lanes, and every step is done lane by lane: message number modulo lanes is the socket, so that a
lane's bytes stay on one socket, and the sockets of a pair carry equal shares.
"""

import dataclasses
import itertools

from tfdist.collectives.plan import Kind


def striped(steps, lanes):
    """Yields the steps of `lanes` runs of one plan, in turns; chunk c becomes the chunks c lanes ... (c + 1) lanes - 1.

    Costs the same bytes, in `lanes` times as many messages. The lanes of a multicast are multicasts. With copies in
    the plan, the lanes of source and target must be equally long.

    Args:
      steps: iterable of `Step`s of one rank.
      lanes: int >= 1, equal on all ranks: the sockets of a pair.
    """
    for group in _together(steps):
        for lane in range(lanes):
            for step in group:
                source = step.source * lanes + lane if step.kind == Kind.COPY else step.source
                yield dataclasses.replace(step, chunk=step.chunk * lanes + lane, source=source)


def _together(steps):
    """Returns the steps as lists: the sends of one chunk that follow each other, and every other step by itself."""
    numbered = enumerate(steps)
    groups = itertools.groupby(numbered, lambda item: item[1].chunk if item[1].kind == Kind.SEND else -1 - item[0])
    return ([step for _, step in group] for _, group in groups)
