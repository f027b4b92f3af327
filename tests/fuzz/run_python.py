"""Runs one Python target for a while: run_python.py TARGET SECONDS. Guided by coverage where `atheris` is installed.

Address space is limited: whatever asks for more than that of one input is found.
"""

import contextlib
import importlib.util
import logging
import os
import resource
import secrets
import sys
import tempfile
import time
from pathlib import Path

_ADDRESS_BYTES = 8 << 30
_INPUT_SECONDS = 20


def main(name, seconds):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    logging.disable(logging.CRITICAL)  # every input is turned away with a warning
    is_guided = importlib.util.find_spec("atheris") is not None
    with _instrumented() if is_guided else contextlib.nullcontext():
        from tests.fuzz.targets import TARGETS
    make, corpus, tokens = TARGETS[name]
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_BYTES, _ADDRESS_BYTES))
    with make() as target:
        (_run_guided if is_guided else _run)(target, corpus, tokens, seconds)


def _instrumented():
    import atheris

    return atheris.instrument_imports(include=["tfdist"])


def _run(target, corpus, tokens, seconds):
    from tests.fuzz.mutate import Mutator

    seed, count, deadline = secrets.randbits(32), 0, time.monotonic() + seconds
    mutator = Mutator(corpus, tokens, seed)
    while time.monotonic() < deadline:
        data = mutator.next()
        begin = time.monotonic()
        try:
            target(data)
        except BaseException:
            sys.stderr.write(f"broke at {data!r}\n")
            raise
        if time.monotonic() - begin > _INPUT_SECONDS:
            sys.exit(f"too slow at {data!r}")
        count += 1
    print(f"{count} inputs were survived, seed {seed}")


def _run_guided(target, corpus, tokens, seconds):
    import atheris

    folder = tempfile.mkdtemp()
    for number, data in enumerate(corpus):
        Path(folder, f"seed-{number}").write_bytes(data)
    words = Path(folder + ".dictionary")
    words.write_text("".join(f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in token)}"\n' for token in tokens))
    os.chdir(tempfile.mkdtemp())  # where it leaves what broke
    options = [f"-max_total_time={seconds}", f"-timeout={_INPUT_SECONDS}", "-max_len=4096", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], *options, *([f"-dict={words}"] if tokens else []), folder], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
