"""`python -m tests.fuzz [--seconds 600] [TARGET ...]`: every fuzz target for so long, as many at a time as there are cores.

Native targets run under libFuzzer where there is a clang++, else as driver.cc mutates; Python targets under atheris where that is
installed. Exits with 1 where one broke; its output, which ends with the input, is shown.
"""

import argparse
import concurrent.futures
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz import native
from tests.fuzz.targets import TARGETS

_HERE = Path(__file__).resolve().parent
_RUNS_A_SECOND = 200
_SLACK_SECONDS = 300


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600, help="for each target (600)")
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join([*native.TARGETS, *TARGETS])} (all)"
    )
    chosen = parser.parse_args()
    names = chosen.targets or [*native.TARGETS, *TARGETS]
    with tempfile.TemporaryDirectory() as folder:
        commands = _native_commands(folder, [n for n in names if n in native.TARGETS], chosen.seconds)
        for name in names:
            if name not in native.TARGETS:
                commands[name] = [sys.executable, str(_HERE / "run_python.py"), name, str(chosen.seconds)]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            codes = list(pool.map(lambda item: _run(*item, folder, chosen.seconds), commands.items()))
    return int(any(codes))


def _native_commands(folder, names, seconds):
    if not names:
        return {}
    clang = native.clang()
    plain, guided = Path(folder, "plain"), Path(folder, "guided")
    plain.mkdir()
    programs = native.build(plain, names)
    if clang is None:
        return {name: [programs[name], "--runs", str(seconds * _RUNS_A_SECOND), *native.corpus(name)] for name in names}
    guided.mkdir()
    commands = {}
    for name, program in native.build(guided, names, clang).items():
        corpus = Path(folder, f"corpus-{name}")
        corpus.mkdir()
        subprocess.run([programs[name], "--write", str(corpus)], check=True, timeout=60)
        options = [f"-max_total_time={seconds}", "-timeout=25", "-max_len=2048", "-rss_limit_mb=2048"]
        commands[name] = [
            program,
            *options,
            str(corpus),
            *([str(_HERE / "corpus" / name)] if native.corpus(name) else []),
        ]
    return commands


def _run(name, command, folder, seconds):
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=3 * seconds + _SLACK_SECONDS
    )
    lines = done.stdout.decode(errors="replace").splitlines()
    shown = lines[-1:] if done.returncode == 0 else lines[-60:]
    print(f"{name}: {'broke' if done.returncode else 'ok'}\n" + "\n".join(f"  {line}" for line in shown), flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
