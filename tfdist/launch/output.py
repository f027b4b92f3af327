"""Copies the workers' output to ours: whole lines only, each with its rank in front."""

import collections
import os
import threading

_MAX_LINE_BYTES = 1 << 16
_KEPT_LINES = 400


class Output:
    """Where all workers' lines go. Thread safe; a line is never cut by another worker's.

    Args:
      stdout, stderr: text streams, ours.
      on_broken: called once, without arguments, when nobody reads our output any more.
    """

    def __init__(self, stdout, stderr, on_broken=lambda: None):
        self._streams = {"stdout": stdout, "stderr": stderr}
        self._lock = threading.Lock()  # held while lines are written
        self._on_broken = on_broken
        self._broken = False

    def write(self, name, data):
        """Writes bytes to `"stdout"` or `"stderr"`."""
        stream = self._streams[name]
        with self._lock:
            if self._broken:
                return
            try:
                if hasattr(stream, "buffer"):
                    stream.buffer.write(data)
                else:  # a notebook's
                    stream.write(data.decode(errors="replace"))
                stream.flush()
            except (OSError, ValueError):
                self._broken = True
                self._on_broken()

    def say(self, text):
        """Writes one line of the launcher's own on stderr."""
        self.write("stderr", f"tfdist run: {text}\n".encode())


class Pump(threading.Thread):
    """Reads one stream of one worker to its end.

    Args:
      pipe: a binary file, the reading end.
      output: an `Output`.
      name: "stdout" or "stderr".
      prefix: bytes in front of each line.
    """

    def __init__(self, pipe, output, name, prefix):
        super().__init__(name=f"tfdist-{name}", daemon=True)
        self._pipe, self._output, self._stream, self._prefix = pipe, output, name, prefix
        self._kept = collections.deque(maxlen=_KEPT_LINES)

    def run(self):
        rest = b""
        with self._pipe:
            while True:
                chunk = os.read(self._pipe.fileno(), 1 << 16)
                *lines, rest = (rest + chunk).split(b"\n")
                if rest and (not chunk or len(rest) > _MAX_LINE_BYTES):
                    lines, rest = [*lines, rest], b""
                self._copy(lines)
                if not chunk:
                    return

    def last_lines(self):
        """Returns the last lines, as text."""
        return [line.decode(errors="replace") for line in list(self._kept)]

    def _copy(self, lines):
        # A progress bar rewrites its line by "\r", which would hide the rank: the last state is what is shown.
        lines = [line.rstrip(b"\r").rpartition(b"\r")[2] for line in lines]
        self._kept.extend(lines)
        if lines:
            self._output.write(self._stream, b"".join(self._prefix + line + b"\n" for line in lines))
