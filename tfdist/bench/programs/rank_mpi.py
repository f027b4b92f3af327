"""A rank of an MPI through mpi4py: `Allreduce(MPI.IN_PLACE, buffer)`. MPI4PY_MPIABI says which MPI it is."""

import os

from serve import pin, repeat, serve


def main():
    pin(int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"]))  # before MPI starts its threads
    from mpi4py import MPI

    world = MPI.COMM_WORLD

    def prepare(array):
        buffer = [array, MPI.FLOAT]
        return repeat(lambda: world.Allreduce(MPI.IN_PLACE, buffer))

    serve(world.rank, world.size, prepare)


if __name__ == "__main__":
    main()
