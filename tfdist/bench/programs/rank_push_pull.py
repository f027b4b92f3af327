"""The worker of `tfdist bench push-pull`: a gradient goes to the server, fresh parameters come back in its place."""

from serve import check, fill, pin, repeat, serve

_CHECKED_RATE = 0.5
_TIMED_RATE = 2.0**-30  # where no gradient is, parameters come back, and are the next gradient: they shall stay finite


def preparing(client):
    """Returns the function from an array to `run(iterations)`; it verifies two updates of every element first."""
    from tfdist.parameter_server.client import Options, Tensor
    from tfdist.parameter_server.rules import Rule

    names = iter(range(1 << 30))

    def prepare(array):
        tensor = Tensor("theta", array.shape, "float32", Rule("sgd", (0.0,)))
        store = client.add_store(f"push-pull {next(names)}", [tensor], Options())
        store.write(0, [array * 0])
        store.begin(1, 0, tell=True)
        for updates in (1, 2):
            fill(array, 0)
            store.exchange([array], [array], learning_rate=_CHECKED_RATE)
            problem = check(array, 1, -_CHECKED_RATE * updates)
            if problem:
                raise ValueError(problem)
        return repeat(lambda: store.exchange([array], [array], learning_rate=_TIMED_RATE))

    return prepare


def main():
    pin(0)
    from tfdist.strategies import servers

    client, stop = servers.connect(None, None)
    serve(0, 1, preparing(client), tolerance=None)
    client.close()
    stop()


if __name__ == "__main__":
    main()
