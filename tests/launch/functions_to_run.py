"""Functions that the tests of the function launcher run in workers."""

import os


def place(text, *, _unused=None):
    import tfdist

    return text, tfdist.rank(), tfdist.world_size()


def large():
    return bytes(5_000_000)


def fail():
    if os.environ["TFDIST_RANK"] == "1":
        raise ValueError("rank 1 does not like it")
    import time

    time.sleep(60)


def interrupt_parent():
    import signal
    import time

    os.kill(int(os.environ["PARENT"]), signal.SIGINT)
    time.sleep(60)
