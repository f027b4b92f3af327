"""One line about the machine, for the head of every table."""

import os
import platform
import re
from pathlib import Path

from tfdist.launch.resources import available_cores, core_quota


def describe():
    """Returns processor, cores, memory and kernel in one line."""
    quota = core_quota()
    limit = "" if quota is None else f" (time of {quota:g})"
    return f"{_processor()}, {len(available_cores())} of {os.cpu_count()} cores{limit}{_memory()}, {_kernel()}"


def _processor():
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    family = f" family {found['cpu family']} model {found['model']}" if "cpu family" in found else ""
    return f"{found.get('model name', platform.machine())}{family}"


def _memory():
    try:
        return f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    except (OSError, ValueError):
        return ""


def _kernel():
    return f"{platform.system()} {platform.release()}"
