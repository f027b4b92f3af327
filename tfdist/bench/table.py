"""The results: aligned text, JSON lines, a plot."""

import importlib
import json
import sys
from pathlib import Path

from tfdist.bench.ratio import median_ratio
from tfdist.errors import ConfigurationError


def size(num_bytes):
    """Returns e.g. "4 B", "4.1 KB", "16.8 MB" (powers of ten)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}"
    return f"{num_bytes} B"


def duration(seconds):
    """Returns e.g. "1.31 us" or "27.1 ms"."""
    for unit, scale in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds:.3g} s"


def align(header, rows, least=0):
    """Returns lines of columns: the first aligned to the left, the others to the right, none narrower than `least`."""
    cells = [header, *rows]
    widths = [max(least, *(len(row[column]) for row in cells)) for column in range(len(header))]
    return [
        "  ".join(text.ljust(width) if column == 0 else text.rjust(width)
                  for column, (text, width) in enumerate(zip(row, widths))).rstrip()
        for row in cells
    ]  # fmt: skip


def all_reduce_header(with_limit=False):
    """Returns the names of the columns."""
    return ("peer", "bytes", "time", "busbw GB/s", "rss MB", "x fastest", *(("x limit (95 %)",) if with_limit else ()))


def all_reduce_rows(rows):
    """Returns the cells of one size.

    "x fastest" is the time over that of the fastest peer (the limit is none). "x limit", where there is one, is the median
    over rounds of the time over the limit's in the same round, and in brackets the bound below which that median lies with
    95 % confidence.
    """
    fastest = min((row.seconds_median for row in rows if not is_limit(row)), default=None)
    limit = next((row for row in rows if is_limit(row)), None)
    return [
        (row.peer, size(row.bytes), duration(row.seconds_median), f"{row.busbw_gbps:.3g}", f"{row.rss_mb:.0f}",
         f"{row.seconds_median / fastest:.2f}" if fastest else "", *((_over(row, limit),) if limit else ()))
        for row in rows
    ]  # fmt: skip


def _over(row, limit):
    return "" if row is limit else "{:.2f} (<{:.2f})".format(*median_ratio(row.rounds, limit.rounds))


def is_limit(row):
    """Returns whether a row is the yardstick and no peer."""
    return row.peer.startswith("limit")


def all_reduce_json(row):
    """Returns one line of JSON."""
    return json.dumps(
        {
            "peer": row.peer,
            "nproc": row.nproc,
            "bytes": row.bytes,
            "seconds_median": row.seconds_median,
            "busbw_GBps": row.busbw_gbps,
            "rss_mb": round(row.rss_mb, 1),
        }
    )


def plotter():
    """Returns matplotlib's pyplot.

    Raises:
      ConfigurationError: it is not installed.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        raise ConfigurationError(
            "matplotlib is expected with --plot. Received: not installed. Run `pip install 'tfdist[bench]'`."
        ) from None
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def check_plot(path):
    """Refuses what `plot` could not write, before minutes of measuring.

    Raises:
      ConfigurationError: no matplotlib, no such folder, or a format that it does not know.
    """
    formats = sorted(plotter().figure().canvas.get_supported_filetypes())
    plotter().close("all")
    path = Path(path)
    if not path.parent.is_dir() or path.suffix[1:] not in formats:
        raise ConfigurationError(
            f"--plot is expected to name a file in an existing folder, of a format such as {', '.join(formats)}. "
            f"Received: {str(path)!r}. Name another."
        )


def plot(path, rows, title):
    """Draws seconds over bytes, one line a peer, both axes logarithmic, into a file whose suffix says the format."""
    pyplot = plotter()
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for peer in dict.fromkeys(row.peer for row in rows):
        points = sorted((row.bytes, row.seconds_median) for row in rows if row.peer == peer)
        axes.plot(*zip(*points), marker="o", label=peer, linestyle="--" if peer.startswith("limit") else "-")
    axes.set(xscale="log", yscale="log", xlabel="bytes", ylabel="seconds (median)", title=title)
    axes.title.set_fontsize("small")
    axes.grid(True, which="major", alpha=0.4)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def write(text):
    """Writes a line, or several, at once: rows are shown as they are done."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
