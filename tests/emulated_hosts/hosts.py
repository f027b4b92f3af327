"""Emulated hosts for a test or a measurement: network namespaces behind a switch with a line rate and a delay."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SCRIPT = Path(__file__).with_name("netns.sh")
_SECONDS = 60


def why_not():
    """Returns what this machine lacks for emulated hosts, or None."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "root is needed to make network namespaces"
    for program in ("ip", "unshare", "gcc"):
        if shutil.which(program) is None:
            return f"the program {program} is needed"
    if not os.path.exists("/dev/net/tun"):
        return "/dev/net/tun is needed"
    trial = f"tfdtrial{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", trial], capture_output=True, timeout=_SECONDS, check=False).returncode:
        return "`ip netns add` is not allowed here"
    subprocess.run(["ip", "netns", "del", trial], capture_output=True, timeout=_SECONDS, check=False)
    return None


def address(index):
    """Returns the address of a host within its network."""
    return f"10.77.0.{index + 1}"


@contextlib.contextmanager
def hosts(count, rate, delay):
    """Yields a function from a host's index to the beginning of a command line that runs a program there.

    Args:
      count: int, hosts.
      rate: of each line in each direction, such as "1gbit".
      delay: one way, such as "0.5ms".
    """
    with tempfile.TemporaryDirectory(prefix="tfdist-hosts-") as folder:
        variables = {"PREFIX": f"tfd{os.getpid()}x", "TMPDIR": folder, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        environment = {**os.environ, **variables}

        def script(*arguments):
            subprocess.run(
                [str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=_SECONDS, check=True
            )

        try:
            script("up", str(count), rate, delay)
            yield lambda index: ("/usr/bin/env", f"PREFIX={variables['PREFIX']}", str(SCRIPT), "run", str(index))
        finally:
            script("down")
