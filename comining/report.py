"""Tables and plots of runs: ``python -m comining.report DIR...``.

Reads the ``result.json`` files below directories of runs or sweeps, prints
Markdown, and writes ``report.md``, ``report.csv`` and plots. ``--html`` also writes
``report.html``, one page with curves and pictures, from ``metrics.csv`` and ``pictures/`` of the
runs. It can be used while a sweep runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from comining.errors import UserError, one_line
from comining.reports.html_page import write_page
from comining.reports.paper_tables import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 2 for bad input or an output that cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m comining.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="directories of runs or sweeps")
    parser.add_argument("--output", type=Path, help="where to write; default: the first folder")
    parser.add_argument("--html", action="store_true", help="also write report.html")
    given = parser.parse_args(arguments)
    try:
        output = given.output or given.folders[0]
        write_report(given.folders, output)
        if given.html:
            print(f"written: {write_page(given.folders, output)}")
    except (UserError, OSError) as error:
        message = one_line(error)
        print(f"error: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
