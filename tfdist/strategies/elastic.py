"""What a strategy asks about its members where workers may be lost and come."""

import contextlib

from tfdist.comm import default


def of(group):
    """Returns the `Members` of a group, or None where they do not change."""
    membership = default.membership()
    if group is None or membership is None or membership.group is not group:
        return None
    return Members(membership)


class Members:
    """The members of a strategy's group.

    Where all members must decide alike they ask for those *of a generation*, and the generation of what they have done
    last: they hear of a loss at different times, but of each step they know alike who took part in it.

    Args:
      membership: the `tfdist.elastic.membership.Membership`.
    """

    def __init__(self, membership):
        self.membership = membership
        self._group = membership.group
        self.is_passing = False  # a joiner passes over what the others have done, which concerns nobody else

    @property
    def is_joining(self):
        """Whether this worker has come again and is not a member yet."""
        return self.membership.is_joining

    @property
    def is_chief(self):
        """Whether this worker is the senior member; a joiner is not, though it is alone."""
        return not self.is_joining and self._group.rank == self._group.chief

    @contextlib.contextmanager
    def passing(self):
        """What is done in this context the others have done before, and it concerns nobody else."""
        outer, self.is_passing = self.is_passing, True
        try:
            yield
        finally:
            self.is_passing = outer

    def keep(self, name, value):
        """Keeps bytes for workers that come later."""
        with self.membership.store() as store:
            store.set(f"elastic/kept/{name}", value)

    def recall(self, name):
        """Returns the bytes that were kept; waits for them."""
        with self.membership.store() as store:
            return store.get(f"elastic/kept/{name}", timeout=self._group.timeout)

    @property
    def generation(self):
        """The generation of what was done last."""
        return self._group.committed_generation

    @property
    def step_generation(self):
        """The generation of the gradients that were reduced last."""
        return self._group.step_generation

    def of_generation(self, generation):
        """Returns the sorted tuple of the members of a generation."""
        return tuple(sorted(self.membership.history.get(generation, self._group.members)))

    @property
    def present(self):
        """The sorted tuple of the members who did what was done last."""
        return self.of_generation(self.generation)

    @property
    def share_of_data(self):
        """`(index, count)`: this worker's place among those that divide the data."""
        return self.present.index(self._group.rank), len(self.present)
