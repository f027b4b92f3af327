"""A rank of PyTorch's Gloo: `torch.distributed.all_reduce` on a tensor in place."""

import datetime
import os

from serve import pin, repeat, serve, task

_TIMEOUT_SECONDS = 300


def main():
    rank, world_size = int(os.environ["TFDIST_RANK"]), int(os.environ["TFDIST_WORLD_SIZE"])
    pin(rank)
    import torch
    from torch import distributed

    torch.set_num_threads(max(1, len(task()["cores"][rank])))
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{task()['folder']}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=_TIMEOUT_SECONDS),
    )

    def prepare(array):
        tensor = torch.from_numpy(array)
        return repeat(lambda: distributed.all_reduce(tensor))

    serve(rank, world_size, prepare)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
