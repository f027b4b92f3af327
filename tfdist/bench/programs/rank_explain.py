"""A rank of `tfdist bench all-reduce --explain`: what the cost model says of every algorithm, and how long each takes."""

import os
import time

from serve import Barrier, allocate, answer, pin, task

_BLOCK_SECONDS = 1e-3
_MAX_ITERATIONS = 1000


class Explainer:
    """What the coordinator can ask of a rank; each public method is a message.

    Args:
      group: the `tfdist.comm.Group`.
      barrier: a `Barrier`.
    """

    def __init__(self, group, barrier):
        self._group, self._barrier = group, barrier
        self._calls, self._iterations = {}, {}

    def describe(self):
        """Returns the rates and the choice of rank 0's measurement, and both in a line."""
        from tfdist.comm import tuning

        return {"choice": self._group.choice.to_dict(), "text": tuning.describe(self._group)}

    def prepare(self, num_bytes):
        """Sets up every algorithm on one buffer; returns the chosen one, and what each is predicted to take, in seconds."""
        from tfdist.collectives import ALL_REDUCE
        from tfdist.collectives.choose import predict

        group, array = self._group, allocate(num_bytes // 4)
        array.fill(0)
        predicted = {name: predict(name, group.topology, group.rates, num_bytes) for name in ALL_REDUCE}
        self._calls = {name: group.prepare_all_reduce(array, algorithm=name) for name in predicted}
        self._iterations = {
            name: max(1, min(_MAX_ITERATIONS, round(_BLOCK_SECONDS / seconds))) for name, seconds in predicted.items()
        }
        return {"predicted": predicted, "chosen": group.algorithm_for(num_bytes)}

    def measure(self, first):
        """One round: a block of each algorithm, `first` (an int) the first of them; returns seconds per reduction by name."""
        names, seconds = list(self._calls), {}
        for name in [*names[first:], *names[:first]]:
            call, iterations = self._calls[name], self._iterations[name]
            call()
            self._barrier.wait()
            begin = time.perf_counter()
            for _ in range(iterations):
                call()
            seconds[name] = (time.perf_counter() - begin) / iterations
        return {"seconds": seconds}


def main():
    rank = int(os.environ["TFDIST_RANK"])
    pin(rank)
    from tfdist.comm import default_group

    with default_group() as group:
        barrier = Barrier(os.path.join(task()["folder"], "barrier"), rank, group.world_size)
        answer(rank, Explainer(group, barrier))


if __name__ == "__main__":
    main()
