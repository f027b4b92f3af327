"""Changes inputs at random, the same way for the same seed: what driver.cc is for the native targets."""

import random

_NUMBERS = (0, 1, 2, 63, 64, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 1 << 20, (1 << 20) + 1, 0x7FFFFFFF, 0xFFFFFFFF)
_BYTES_AT_MOST = 4096


class Mutator:
    """An endless source of inputs.

    Args:
      corpus: list of bytes, inputs that make sense.
      tokens: list of bytes that mean something in them.
      seed: int.
    """

    def __init__(self, corpus, tokens=(), seed=1):
        self._corpus, self._tokens = list(corpus), list(tokens) or [b"\0"]
        self._random = random.Random(seed)
        self._changes = (
            self._flip,
            self._set,
            self._number,
            self._remove,
            self._repeat,
            self._cut,
            self._splice,
            self._token,
        )

    def next(self):
        """Returns bytes."""
        data = bytearray(self._random.choice(self._corpus))
        for _ in range(self._random.randint(1, 6)):
            self._random.choice(self._changes)(data, self._random.randrange(len(data) + 1))
        return bytes(data[:_BYTES_AT_MOST])

    def _flip(self, data, at):
        if at < len(data):
            data[at] ^= 1 << self._random.randrange(8)

    def _set(self, data, at):
        data[at : at + 1] = bytes([self._random.randrange(256)])

    def _number(self, data, at):
        size = self._random.choice((1, 2, 4))
        number = self._random.choice(_NUMBERS) & ((1 << 8 * size) - 1)
        data[at : at + size] = number.to_bytes(size, "big")

    def _remove(self, data, at):
        del data[at : at + self._random.randint(1, 32)]

    def _repeat(self, data, at):
        data[at:at] = data[at : at + 64] * self._random.randint(1, 3)

    def _cut(self, data, at):
        del data[at:]

    def _splice(self, data, at):
        other = self._random.choice(self._corpus)
        begin = self._random.randrange(len(other) + 1)
        data[at : at + 64] = other[begin : begin + 256]

    def _token(self, data, at):
        data[at:at] = self._random.choice(self._tokens)
