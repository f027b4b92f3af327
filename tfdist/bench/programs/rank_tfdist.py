"""A rank of tfdist itself; its group is formed from the variables of `tfdist run`."""

import os

from serve import pin, repeat, serve, task

_ROUNDING = {None: 0.0, "float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def preparing(group, wire_dtype):
    """Returns the function from an array to `run(iterations)`."""
    return lambda array: repeat(group.prepare_all_reduce(array, "sum", wire_dtype=wire_dtype))


def tolerance(wire_dtype, world_size):
    """Returns the relative error that a sum may have: each of its additions and its way home may round once."""
    return _ROUNDING.get(wire_dtype, 2.0**-2) * world_size


def main():
    rank = int(os.environ["TFDIST_RANK"])
    pin(rank)
    from tfdist.comm import default_group

    group = default_group()
    wire_dtype = task().get("wire_dtype")
    serve(rank, group.world_size, preparing(group, wire_dtype), tolerance(wire_dtype, group.world_size))
    group.close()


if __name__ == "__main__":
    main()
