"""How a function gets into the workers of `local.run`, and its results back: two anonymous pipes per worker."""

import importlib
import os
import pickle
import sys
import threading

from tfdist.errors import ConfigurationError

COMMAND = ("-c", "from tfdist.launch.function import main; main()")


class Calls:
    """The calls of one function on all workers. Not thread safe.

    Args:
      fn: the function.
      args: tuple of its arguments.

    Raises:
      ConfigurationError: a new process could not import fn, or the arguments cannot be pickled.
    """

    def __init__(self, fn, args):
        module, name = _find(fn)
        try:
            self._payload = pickle.dumps((module, name, tuple(args)))
        except Exception as error:  # whatever the arguments' own pickling raises
            raise ConfigurationError(
                f"args are expected to be picklable. Received: {type(error).__name__}: {error}. "
                "Make them inside the function instead."
            ) from error
        self._writer = None
        self._readers = []

    def options(self):
        """Returns the further arguments of `subprocess.Popen` for the next worker."""
        reader, self._writer = os.pipe()
        self._readers.append(_Reader(reader))
        return {"stdin": -1, "pass_fds": (self._writer,)}

    def began(self, worker):
        """To be told of each worker after its start."""
        os.close(self._writer)
        self._readers[-1].start()
        # The descriptor's number goes first, as the worker does not know it. Written beside, for a worker may be slow.
        data = f"{self._writer}\n".encode() + self._payload
        threading.Thread(target=_write, args=(worker.stdin, data), daemon=True).start()

    def results(self):
        """Returns what each worker returned, by rank."""
        return [reader.result() for reader in self._readers]

    def close(self):
        """Closes the pipes."""
        for reader in self._readers:
            reader.close()


class _Reader(threading.Thread):
    """Reads a pipe to its end, lest a large result block its worker."""

    def __init__(self, descriptor):
        super().__init__(daemon=True)
        self._file = open(descriptor, "rb")
        self._data = b""

    def run(self):
        self._data = self._file.read()

    def result(self):
        self.join(timeout=60.0)
        return pickle.loads(self._data)

    def close(self):
        if self.ident is not None:
            self.join(timeout=2.0)
        if not self.is_alive():
            self._file.close()


def main():
    """Runs in the worker: reads the call from stdin, makes it and writes the result."""
    source, sys.stdin = sys.stdin.buffer, open(os.devnull, encoding="utf-8")
    descriptor = int(source.readline())
    os.set_inheritable(descriptor, False)
    module, name, args = pickle.loads(source.read())
    fn = _look_up(module, name)
    with open(descriptor, "wb") as file:
        file.write(pickle.dumps(fn(*args)))


def _find(fn):
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    try:
        found = module not in (None, "__main__") and name is not None and _look_up(module, name) is fn
    except (ImportError, AttributeError):
        found = False
    if not found:
        raise ConfigurationError(
            "fn is expected to be a function that a new process can import. "
            f"Received: fn={fn!r} of module {module!r}. Write it into a module of its own and import it from there "
            "(in a notebook: %%writefile my_module.py)."
        )
    return module, name


def _look_up(module, name):
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _write(pipe, data):
    try:
        with pipe:
            pipe.write(data)
    except OSError:
        pass  # the worker has ended; its exit code says how
