"""A rank whose all-reduce adds 1 to one element on rank 1: the benchmark must notice. Started by path, like its model."""

import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tfdist" / "bench" / "programs"))
import serve


def main():
    rank, world_size = int(os.environ["TFDIST_RANK"]), int(os.environ["TFDIST_WORLD_SIZE"])
    serve.pin(rank)

    def prepare(array):
        total = np.zeros_like(array)
        part = np.empty_like(array)

        def run(iterations):
            total[:] = 0
            for other in range(world_size):
                serve.fill(part, other)
                total[:] += part
            array[:] = total
            array[array.size // 2] += rank == 1

        return run

    serve.serve(rank, world_size, prepare)


if __name__ == "__main__":
    main()
